//! The data directory of `serve`: its lock and the keys in it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nano_webhooks::random;
use nano_webhooks_core::{api_key::ApiKey, data_key::KeyMaterial};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

const LOCK_FILE: &str = "lock";
const API_KEY_FILE: &str = "api-key";
/// Has the key that wraps data keys. It is a file of its own so that the tables alone do not reveal
/// secrets.
const SECRETS_KEY_FILE: &str = "secrets-key";

/// A data directory that only this process uses.
pub struct DataDir {
    path: PathBuf,
    /// The operating system releases the lock when the file is closed.
    _lock: File,
}

/// A key, and whether it was stored before.
pub enum StoredKey<T> {
    Existing(T),
    Created(T),
}

impl DataDir {
    /// Creates the directory if it is missing and locks it for this process.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let lock = create_lock_file(path)
            .with_context(|| format!("cannot use the data directory {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => {
                bail!("another process uses the data directory {}", path.display())
            }
            Err(fs::TryLockError::Error(error)) => Err(error)
                .with_context(|| format!("cannot lock the data directory {}", path.display())),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file with the key that wraps data keys.
    pub fn secrets_key_path(&self) -> PathBuf {
        self.path.join(SECRETS_KEY_FILE)
    }

    /// The stored API key of the demo account. Creates and stores one if there is none.
    pub fn load_or_create_api_key(&self) -> anyhow::Result<StoredKey<ApiKey>> {
        let path = self.path.join(API_KEY_FILE);
        if let Some(text) = read_if_exists(&path)? {
            let key = ApiKey::parse(text.trim()).with_context(|| path.display().to_string())?;
            return Ok(StoredKey::Existing(key));
        }
        let key = ApiKey::from_random(&random::bytes());
        write_atomically(&path, key.expose())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(StoredKey::Created(key))
    }

    /// The stored key that wraps data keys. Creates and stores one if there is none.
    pub fn load_or_create_secrets_key(&self) -> anyhow::Result<StoredKey<KeyMaterial>> {
        let path = self.secrets_key_path();
        if let Some(text) = read_if_exists(&path)? {
            let key = parse_secrets_key(&text).with_context(|| path.display().to_string())?;
            return Ok(StoredKey::Existing(key));
        }
        let key = KeyMaterial::from_random(random::bytes());
        write_atomically(&path, &key.to_hex())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(StoredKey::Created(key))
    }
}

/// Reads the key that wraps data keys from a data directory that another process may use.
pub fn load_secrets_key(data_dir: &Path) -> anyhow::Result<KeyMaterial> {
    let path = data_dir.join(SECRETS_KEY_FILE);
    let text = fs::read_to_string(&path)
        .map(Zeroizing::new)
        .with_context(|| format!("cannot read {}", path.display()))?;
    parse_secrets_key(&text).with_context(|| path.display().to_string())
}

/// Only the owner may read the directory, because it has secrets.
fn create_lock_file(directory: &Path) -> io::Result<File> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(directory)?;
    File::create(directory.join(LOCK_FILE))
}

fn parse_secrets_key(text: &str) -> anyhow::Result<KeyMaterial> {
    KeyMaterial::from_hex(text.trim()).context("expected 64 hexadecimal digits")
}

fn read_if_exists(path: &Path) -> anyhow::Result<Option<Zeroizing<String>>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes a temporary file and renames it, so that the file is either missing or complete. Only the
/// owner may read it.
fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(directory)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
