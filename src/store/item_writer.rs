//! An item that borrows its texts and is serialized as DynamoDB's JSON in one pass.
//!
//! The dispatcher writes an item per delivery. The SDK's items are maps of owned strings, which
//! would be built and dropped for each of them.

use std::borrow::Cow;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Serialize, Serializer};

use super::item::Item;

/// The attributes of an item. Each name must be added once.
pub(super) struct BorrowedItem<'a>(Vec<(&'static str, BorrowedValue<'a>)>);

/// The value of an attribute. As JSON it names its type, like DynamoDB's `AttributeValue`.
#[derive(Serialize)]
enum BorrowedValue<'a> {
    #[serde(rename = "S")]
    Text(Cow<'a, str>),
    #[serde(rename = "N", serialize_with = "serialize_number")]
    Number(i64),
}

impl<'a> BorrowedItem<'a> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Adds an attribute of type `S`.
    pub(super) fn text(&mut self, name: &'static str, text: impl Into<Cow<'a, str>>) {
        self.0.push((name, BorrowedValue::Text(text.into())));
    }

    /// Adds an attribute of type `N`.
    pub(super) fn number(&mut self, name: &'static str, number: impl Into<i64>) {
        self.0.push((name, BorrowedValue::Number(number.into())));
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
    fn from(item: BorrowedItem<'_>) -> Self {
        let attributes = item.0.into_iter();
        attributes
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect()
    }
}

impl From<BorrowedValue<'_>> for AttributeValue {
    fn from(value: BorrowedValue<'_>) -> Self {
        match value {
            BorrowedValue::Text(text) => Self::S(text.into_owned()),
            BorrowedValue::Number(number) => Self::N(number.to_string()),
        }
    }
}
