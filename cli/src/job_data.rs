//! The result of a job, as a command takes it.

use std::{collections::HashMap, str::FromStr};

use anyhow::ensure;
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::value::RawValue;

/// A JSON object as a DynamoDB map.
#[derive(Clone, Debug)]
pub struct JobData(pub AttributeValue);

impl FromStr for JobData {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let json: Box<RawValue> = serde_json::from_str(text)?;
        let data = to_attribute_value(&json)?;
        ensure!(data.is_m(), "expected a JSON object");
        Ok(Self(data))
    }
}

/// Converts JSON to a DynamoDB value. Numbers keep their text, because it may have more digits than
/// a double.
fn to_attribute_value(json: &RawValue) -> serde_json::Result<AttributeValue> {
    let text = json.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let members: HashMap<String, &RawValue> = serde_json::from_str(text)?;
            let mut map = HashMap::with_capacity(members.len());
            for (name, value) in members {
                map.insert(name, to_attribute_value(value)?);
            }
            AttributeValue::M(map)
        }
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text)?;
            let mut list = Vec::with_capacity(elements.len());
            for element in elements {
                list.push(to_attribute_value(element)?);
            }
            AttributeValue::L(list)
        }
        Some(b'"') => AttributeValue::S(serde_json::from_str(text)?),
        Some(b't' | b'f') => AttributeValue::Bool(serde_json::from_str(text)?),
        Some(b'n') => AttributeValue::Null(true),
        _ => AttributeValue::N(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let json = r#"{"n":12345678901234567890.10,"l":[null,true,"x\n"],"m":{}}"#;
        let JobData(data) = json.parse().unwrap();
        let map = data.as_m().unwrap();
        assert_eq!(
            map["n"],
            AttributeValue::N("12345678901234567890.10".into())
        );
        assert_eq!(
            map["l"],
            AttributeValue::L(vec![
                AttributeValue::Null(true),
                AttributeValue::Bool(true),
                AttributeValue::S("x\n".into())
            ])
        );
        assert_eq!(map["m"], AttributeValue::M(HashMap::new()));
    }

    #[test]
    fn data_must_be_object() {
        for text in ["", "[]", "1", "null", "{", r#"{"a":NaN}"#] {
            assert!(text.parse::<JobData>().is_err(), "{text}");
        }
    }
}
