//! An item as it is written where every microsecond counts: borrowed from what it says, and written as DynamoDB's JSON at once. The
//! SDK's items are maps of owned text, which a dispatcher would fill, read once and drop again for every delivery.

use std::borrow::Cow;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Serialize, Serializer};

use super::Item;

/// The attributes of an item, each name once.
pub(super) struct BorrowedItem<'a>(Vec<(&'static str, Value<'a>)>);

/// What an attribute holds. As JSON it names its type, as DynamoDB's `AttributeValue` does.
#[derive(Serialize)]
enum Value<'a> {
    #[serde(rename = "S")]
    Text(Cow<'a, str>),
    #[serde(rename = "N", serialize_with = "serialize_number")]
    Number(i64),
}

impl<'a> BorrowedItem<'a> {
    /// None yet, and room for so many.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(super) fn text(&mut self, name: &'static str, text: impl Into<Cow<'a, str>>) {
        self.0.push((name, Value::Text(text.into())));
    }

    pub(super) fn number(&mut self, name: &'static str, number: impl Into<i64>) {
        self.0.push((name, Value::Number(number.into())));
    }
}

impl Serialize for BorrowedItem<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn serialize_number<S: Serializer>(number: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

impl From<BorrowedItem<'_>> for Item {
    fn from(BorrowedItem(attributes): BorrowedItem<'_>) -> Self {
        let value = |value| match value {
            Value::Text(text) => AttributeValue::S(text.into_owned()),
            Value::Number(number) => AttributeValue::N(number.to_string()),
        };
        attributes
            .into_iter()
            .map(|(name, held)| (name.to_owned(), value(held)))
            .collect()
    }
}
