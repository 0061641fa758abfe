//! The `data` of a job: DynamoDB's value model and its canonical JSON.
//!
//! The documented verifier parses the body and signs `JSON.stringify` of the result. The canonical
//! form is therefore the fixed point of that: no white space, the escapes of `JSON.stringify`,
//! ECMAScript's numbers, and the key order of ECMAScript objects (array indices first, ascending:
//! ECMA-262, OrdinaryOwnPropertyKeys).

use base64::{Engine, engine::general_purpose::STANDARD};

use super::decimal::Decimal;

/// A DynamoDB attribute value.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeData {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A decimal number.
    Number(Decimal),
    /// A string.
    String(String),
    /// Bytes; base64 in JSON.
    Binary(Vec<u8>),
    /// A list.
    List(Vec<AttributeData>),
    /// A map; its entries may be in any order.
    Map(Vec<(String, AttributeData)>),
    /// A set of strings; in JSON an array sorted by UTF-8 bytes.
    StringSet(Vec<String>),
    /// A set of numbers; in JSON an array sorted by value.
    NumberSet(Vec<Decimal>),
    /// A set of bytes; an array sorted by bytes, then base64, in JSON.
    BinarySet(Vec<Vec<u8>>),
}

impl AttributeData {
    /// Appends the canonical JSON of the value.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Number(number) => number.write_json(out),
            Self::String(text) => write_string(text, out),
            Self::Binary(bytes) => write_base64(bytes, out),
            Self::List(items) => write_array(items, out, Self::write_json),
            Self::Map(entries) => write_map(entries, out),
            Self::StringSet(strings) => write_array(sorted_refs(strings), out, |string, out| {
                write_string(string, out);
            }),
            Self::NumberSet(numbers) => write_array(sorted_refs(numbers), out, Decimal::write_json),
            Self::BinarySet(blobs) => write_array(sorted_refs(blobs), out, |bytes, out| {
                write_base64(bytes, out);
            }),
        }
    }
}

/// Appends `text` as a JSON string with the escapes of `JSON.stringify`: `\"`, `\\`, `\b`, `\f`,
/// `\n`, `\r`, `\t`, and `\u00xx` for the other control characters.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string is written to memory");
}

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    write_string(&STANDARD.encode(bytes), out);
}

fn write_array<'a, T: 'a>(
    items: impl IntoIterator<Item = &'a T>,
    out: &mut Vec<u8>,
    write: impl Fn(&T, &mut Vec<u8>),
) {
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(b']');
}

fn write_map(entries: &[(String, AttributeData)], out: &mut Vec<u8>) {
    let mut ordered: Vec<_> = entries
        .iter()
        .map(|entry| (array_index(&entry.0), entry))
        .collect();
    // `false` sorts first, so keys that are array indices precede the others.
    ordered.sort_unstable_by(|(a, (a_key, _)), (b, (b_key, _))| {
        (a.is_none(), a, a_key).cmp(&(b.is_none(), b, b_key))
    });
    out.push(b'{');
    for (index, (_, (key, value))) in ordered.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(key, out);
        out.push(b':');
        value.write_json(out);
    }
    out.push(b'}');
}

fn sorted_refs<T: Ord>(items: &[T]) -> Vec<&T> {
    let mut items: Vec<_> = items.iter().collect();
    items.sort_unstable();
    items
}

/// Parses a key as an array index: `"0"` to `"4294967294"` in canonical form (ECMA-262, 6.1.7).
fn array_index(key: &str) -> Option<u32> {
    let index: u32 = key.parse().ok()?;
    if index < u32::MAX && index.to_string() == key {
        Some(index)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &AttributeData) -> String {
        let mut out = Vec::new();
        value.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn map(keys: &[&str]) -> AttributeData {
        AttributeData::Map(
            keys.iter()
                .map(|key| ((*key).to_owned(), AttributeData::Null))
                .collect(),
        )
    }

    #[test]
    fn array_indices_precede_sorted_keys() {
        let keys = [
            "b",
            "10",
            "2",
            "01",
            "4294967295",
            "4294967294",
            "-1",
            "+1",
            "1.0",
            "",
            "é",
            "z",
            "0",
            "__proto__",
        ];
        assert_eq!(
            json(&map(&keys)),
            concat!(
                r#"{"0":null,"2":null,"10":null,"4294967294":null,"#,
                r#""":null,"+1":null,"-1":null,"01":null,"1.0":null,"4294967295":null,"#,
                r#""__proto__":null,"b":null,"z":null,"é":null}"#
            )
        );
    }

    #[test]
    fn nested_keys_are_ordered() {
        let inner = map(&["9", "1"]);
        let value = AttributeData::Map(vec![
            ("b".into(), AttributeData::List(vec![inner.clone()])),
            ("a".into(), inner),
        ]);
        assert_eq!(
            json(&value),
            r#"{"a":{"1":null,"9":null},"b":[{"1":null,"9":null}]}"#
        );
    }

    #[test]
    fn escapes_match_json_stringify() {
        let text = "\"\\/\u{8}\u{c}\n\r\t\u{0}\u{1f}\u{7f}\u{2028}\u{2029}é😀<>&";
        assert_eq!(
            json(&AttributeData::String(text.into())),
            "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}\u{2028}\u{2029}é😀<>&\""
        );
    }

    #[test]
    fn sets_are_sorted_and_binary_is_base64() {
        let number = |text| Decimal::parse(text).unwrap();
        assert_eq!(
            json(&AttributeData::StringSet(vec![
                "b".into(),
                "a".into(),
                "B".into()
            ])),
            r#"["B","a","b"]"#
        );
        assert_eq!(
            json(&AttributeData::NumberSet(vec![
                number("10"),
                number("9"),
                number("-1"),
                number("9007199254740993")
            ])),
            r#"[-1,9,10,"9007199254740993"]"#
        );
        assert_eq!(
            json(&AttributeData::BinarySet(vec![vec![255], vec![0, 1]])),
            r#"["AAE=","/w=="]"#
        );
        assert_eq!(
            json(&AttributeData::Binary(b"nano".to_vec())),
            r#""bmFubw==""#
        );
    }
}
