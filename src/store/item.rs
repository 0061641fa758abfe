//! Items: conversion to and from what is stored.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result},
    key_schema::{PK, PrimaryKey, SK},
};

/// An item as the SDK represents it.
pub type Item = HashMap<String, AttributeValue>;

/// Serializes a row.
pub(super) fn to_item(row: &impl Serialize) -> Result<Item> {
    serde_dynamo::to_item(row).map_err(Error::internal)
}

/// Serializes a single attribute.
pub(super) fn to_attribute(value: &impl Serialize) -> Result<AttributeValue> {
    serde_dynamo::to_attribute_value(value).map_err(Error::internal)
}

/// Deserializes a row.
pub(super) fn from_item<'a, T: Deserialize<'a>>(item: Item) -> Result<T> {
    serde_dynamo::from_item(item).map_err(Error::unreadable)
}

/// Deserializes a row that may not exist.
pub(super) fn from_optional_item<'a, T: Deserialize<'a>>(item: Option<Item>) -> Result<Option<T>> {
    match item {
        Some(item) => Ok(Some(from_item(item)?)),
        None => Ok(None),
    }
}

pub(super) fn attr_n(n: i64) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

pub(super) fn attr_s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

/// The text of an attribute, if the item has it as text.
pub(super) fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    match item.get(name) {
        Some(AttributeValue::S(text)) => Some(text),
        _ => None,
    }
}

/// The primary key of an item.
pub(super) fn primary_key(item: &Item) -> Option<PrimaryKey> {
    Some(PrimaryKey {
        pk: text(item, PK)?.to_owned(),
        sk: text(item, SK)?.to_owned(),
    })
}
