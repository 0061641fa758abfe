//! Every module of the three packages and the modules that it uses, read from the syntax trees.
//! Items of unit tests do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path as FilePath,
};

use syn::{
    Attribute, Ident, ItemMod, ItemUse, Macro, Meta, MetaList, Path, Token, UseTree, VisRestricted,
    braced, bracketed,
    ext::IdentExt,
    parenthesized,
    parse::{ParseStream, Parser},
    token,
    visit::{self, Visit},
};

/// The source folder of each package and the name of its crate.
const PACKAGES: [(&str, &str); 3] = [
    ("core/src", "nano_webhooks_core"),
    ("src", "nano_webhooks"),
    ("cli/src", "nano_webhooks_cli"),
];

/// The names of a path, for example `["crate", "store", "Store"]`.
type Segments = Vec<String>;
/// The file of each module. A module's path starts with the name of its crate.
type Modules = BTreeMap<Segments, String>;

/// The uses of one file: each used file and what is used of it, for example `Store::new`.
pub type FileUses = BTreeMap<String, BTreeSet<String>>;

/// Files are named by their path from the root of the repository.
#[derive(Default)]
pub struct ModuleGraph {
    /// The uses of each file.
    pub uses: BTreeMap<String, FileUses>,
    /// The paths of other crates in each file, for example `std::time::Duration`.
    pub external_paths: BTreeMap<String, BTreeSet<String>>,
}

impl ModuleGraph {
    pub fn read() -> Self {
        let modules = list_modules();
        let mut graph = Self::default();
        for (module, file) in &modules {
            graph.add_file(&modules, module, file);
        }
        graph
    }

    fn add_file(&mut self, modules: &Modules, module: &Segments, file: &str) {
        let source = fs::read_to_string(repository().join(file)).unwrap();
        let mut collector = PathCollector::default();
        collector.visit_file(&syn::parse_file(&source).unwrap());
        let scope = Scope {
            modules,
            module,
            imports: &collector.imports,
        };
        let uses = self.uses.entry(file.to_owned()).or_default();
        let external_paths = self.external_paths.entry(file.to_owned()).or_default();
        for path in &collector.paths {
            let path = scope.resolve(path);
            match find_module(modules, &path) {
                Some((_, used)) if used == file => {}
                Some((used_module, used)) => {
                    let item = path[used_module.len()..].join("::");
                    uses.entry(used.clone()).or_default().insert(item);
                }
                None => {
                    external_paths.insert(path.join("::"));
                }
            }
        }
    }

    /// Files that use each other in a circle. The first file is also the last one.
    pub fn find_circle(&self) -> Option<Vec<String>> {
        let mut checked = BTreeSet::new();
        self.uses
            .keys()
            .find_map(|file| self.find_circle_from(file, &mut Vec::new(), &mut checked))
    }

    fn find_circle_from<'a>(
        &'a self,
        file: &'a str,
        trail: &mut Vec<&'a str>,
        checked: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        let start = trail.iter().position(|visited| *visited == file);
        trail.push(file);
        if let Some(start) = start {
            return Some(trail[start..].iter().map(ToString::to_string).collect());
        }
        if checked.insert(file) {
            for used in self.uses[file].keys() {
                let circle = self.find_circle_from(used, trail, checked);
                if circle.is_some() {
                    return circle;
                }
            }
        }
        trail.pop();
        None
    }
}

fn repository() -> &'static FilePath {
    FilePath::new(env!("CARGO_MANIFEST_DIR"))
}

fn list_modules() -> Modules {
    let mut modules = Modules::new();
    for (folder, crate_name) in PACKAGES {
        for file in list_files(&repository().join(folder)) {
            let name = file.strip_prefix(folder).unwrap().trim_matches('/');
            let module = module_path(crate_name, name.strip_suffix(".rs").unwrap());
            modules.insert(module, file);
        }
    }
    modules
}

fn list_files(folder: &FilePath) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(list_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = path.strip_prefix(repository()).unwrap();
            files.push(file.to_str().unwrap().to_owned());
        }
    }
    files
}

/// The path of the module in a file. A binary is a crate of its own.
fn module_path(crate_name: &str, file_stem: &str) -> Segments {
    if file_stem == "main" || file_stem.starts_with("bin/") {
        return vec![format!("{crate_name} {file_stem}")];
    }
    let mut module = vec![crate_name.to_owned()];
    if file_stem != "lib" {
        module.extend(file_stem.split('/').map(str::to_owned));
    }
    module
}

/// The innermost module on the path, and its file.
fn find_module<'a>(modules: &'a Modules, path: &[String]) -> Option<(&'a Segments, &'a String)> {
    (1..=path.len())
        .rev()
        .find_map(|length| modules.get_key_value(&path[..length]))
}

/// What the first name of a path can refer to.
struct Scope<'a> {
    modules: &'a Modules,
    module: &'a [String],
    imports: &'a BTreeMap<String, Segments>,
}

impl Scope<'_> {
    /// The path from the name of its crate.
    fn resolve(&self, path: &[String]) -> Segments {
        match self.imports.get(&path[0]) {
            Some(import) => [self.resolve_import(import), path[1..].to_vec()].concat(),
            None => self.resolve_import(path),
        }
    }

    fn resolve_import(&self, path: &[String]) -> Segments {
        let supers = path.iter().take_while(|name| *name == "super").count();
        if supers > 0 {
            let ancestor = &self.module[..self.module.len() - supers];
            return [ancestor, &path[supers..]].concat();
        }
        let child = [self.module, &path[..1]].concat();
        match path[0].as_str() {
            "crate" => [&self.module[..1], &path[1..]].concat(),
            "self" => [self.module, &path[1..]].concat(),
            _ if self.modules.contains_key(&child) => [self.module, path].concat(),
            _ => path.to_vec(),
        }
    }
}

/// The paths in a file: those of `use` lines and all others with more than one name.
#[derive(Default)]
struct PathCollector {
    imports: BTreeMap<String, Segments>,
    paths: Vec<Segments>,
}

impl PathCollector {
    fn add_use(&mut self, prefix: &[String], tree: &UseTree) {
        let (name, alias) = match tree {
            UseTree::Path(path) => {
                let prefix = [prefix, &[path.ident.to_string()]].concat();
                return self.add_use(&prefix, &path.tree);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(prefix, tree);
                }
                return;
            }
            UseTree::Glob(_) => return self.paths.push(prefix.to_vec()),
            UseTree::Name(name) => (&name.ident, &name.ident),
            UseTree::Rename(rename) => (&rename.ident, &rename.rename),
        };
        let mut path = prefix.to_vec();
        let mut alias = alias.to_string();
        if name != "self" {
            path.push(name.to_string());
        } else if alias == "self" {
            alias.clone_from(path.last().unwrap());
        }
        self.paths.push(path.clone());
        self.imports.insert(alias, path);
    }

    fn add_path(&mut self, path: Segments) {
        if path.len() > 1 {
            self.paths.push(path);
        }
    }

    /// Adds the paths among tokens that need not be Rust expressions.
    fn add_tokens(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        while !input.is_empty() {
            let group;
            if input.peek(token::Paren) {
                parenthesized!(group in input);
                self.add_tokens(&group)?;
            } else if input.peek(token::Bracket) {
                bracketed!(group in input);
                self.add_tokens(&group)?;
            } else if input.peek(token::Brace) {
                braced!(group in input);
                self.add_tokens(&group)?;
            } else if input.peek(Ident::peek_any) {
                let path = parse_path(input)?;
                self.add_path(path);
            } else {
                skip_token(input)?;
            }
        }
        Ok(())
    }
}

impl<'ast> Visit<'ast> for PathCollector {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !module.attrs.iter().any(is_cfg_test) {
            let name = &module.ident;
            assert!(module.content.is_none(), "module {name} needs a file");
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_use(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let names = path.segments.iter().map(|name| name.ident.to_string());
        self.add_path(names.collect());
        visit::visit_path(self, path);
    }

    /// `pub(super)` uses nothing.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        let parse = |input: ParseStream<'_>| self.add_tokens(input);
        parse.parse2(call.tokens.clone()).unwrap();
    }

    fn visit_meta_list(&mut self, list: &'ast MetaList) {
        let parse = |input: ParseStream<'_>| self.add_tokens(input);
        parse.parse2(list.tokens.clone()).unwrap();
    }
}

/// Whether the attribute is `cfg(test)` or `cfg(all(test, …))`.
fn is_cfg_test(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else {
        return false;
    };
    let condition = list.tokens.to_string().replace(' ', "");
    list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all(test,"))
}

fn parse_path(input: ParseStream<'_>) -> syn::Result<Segments> {
    let mut path = vec![input.call(Ident::parse_any)?.to_string()];
    while input.peek(Token![::]) && input.peek3(Ident::peek_any) {
        input.parse::<Token![::]>()?;
        path.push(input.call(Ident::parse_any)?.to_string());
    }
    Ok(path)
}

fn skip_token(input: ParseStream<'_>) -> syn::Result<()> {
    input.step(|cursor| match cursor.token_tree() {
        Some((_, rest)) => Ok(((), rest)),
        None => Err(cursor.error("a token is missing")),
    })
}
