//! In a real JavaScript engine, `JSON.stringify(JSON.parse(body))` returns every body unchanged.

use aws_lc_rs::hmac;
use nano_webhooks_core::{
    event::{EventId, JobEvent, JobOutcome, attribute_data::AttributeData, decimal::Decimal},
    secret::Secret,
    signing,
    timestamp::Timestamp,
};
use proptest::{collection::vec, prelude::*};
use rquickjs::{Context, Function, Runtime};

use crate::support::accounts::account;

/// The documented verifier without the hash function, which a bare engine does not have.
const DOCUMENTED: &str = "(body, timestamp) => `${timestamp}.${JSON.stringify(JSON.parse(body))}`";

fn in_javascript<T>(with: impl FnOnce(&dyn Fn(&str, &str) -> String) -> T) -> T {
    let runtime = Runtime::new().unwrap();
    // A document 32 levels deep needs a few hundred kilobytes of the engine's stack.
    runtime.set_max_stack_size(4 * 1024 * 1024);
    Context::full(&runtime).unwrap().with(|context| {
        let signed: Function = context.eval(DOCUMENTED).unwrap();
        with(&|body, timestamp| signed.call((body, timestamp)).unwrap())
    })
}

/// Numbers as DynamoDB returns them: up to 38 digits, exponents from -130 to 125, and values near
/// the limits of a double.
fn number() -> impl Strategy<Value = Decimal> {
    let text = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>()
            .prop_filter("finite", |n| n.is_finite())
            .prop_map(|n| n.to_string()),
        (-1e21..1e21_f64).prop_map(|n| n.to_string()),
        "-?[0-9]{1,38}",
        r"-?[0-9]{1,19}\.[0-9]{1,19}",
        r"-?[1-9](\.[0-9]{1,37})?E-?(1[0-2][0-5]|[1-9]?[0-9])",
        prop::sample::select(vec![
            "0",
            "-0",
            "0.0",
            "1e21",
            "1E-7",
            "9007199254740993",
            "5e-324",
            "1.7976931348623157e308"
        ])
        .prop_map(str::to_owned),
    ];
    text.prop_map(|text| Decimal::parse(&text).unwrap_or_else(|| panic!("{text}")))
}

fn key() -> impl Strategy<Value = String> {
    let tricky = [
        "",
        "0",
        "1",
        "2",
        "10",
        "01",
        "-1",
        "1.5",
        "4294967294",
        "4294967295",
        "4294967296",
        "2147483647",
        "2147483648",
        "9007199254740992",
        "__proto__",
        "constructor",
        "toJSON",
        "length",
        "\u{2028}",
        "\u{0}",
        "é",
        "\u{ffff}",
        "😀",
    ];
    prop_oneof![
        prop::sample::select(tricky.to_vec()).prop_map(str::to_owned),
        any::<u32>().prop_map(|n| n.to_string()),
        any::<String>(),
    ]
}

fn value() -> impl Strategy<Value = AttributeData> {
    let leaf = prop_oneof![
        Just(AttributeData::Null),
        any::<bool>().prop_map(AttributeData::Bool),
        number().prop_map(AttributeData::Number),
        any::<String>().prop_map(AttributeData::String),
        "[\u{0}-\u{9f}\u{2028}\u{2029}\u{feff}\"\\\\/<>&']{0,8}".prop_map(AttributeData::String),
        vec(any::<u8>(), 0..16).prop_map(AttributeData::Binary),
        vec(any::<String>(), 1..4).prop_map(AttributeData::StringSet),
        vec(number(), 1..4).prop_map(AttributeData::NumberSet),
        vec(vec(any::<u8>(), 0..4), 1..4).prop_map(AttributeData::BinarySet),
    ];
    leaf.prop_recursive(8, 64, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..8).prop_map(AttributeData::List),
            map(inner)
        ]
    })
}

fn map(of: impl Strategy<Value = AttributeData>) -> impl Strategy<Value = AttributeData> {
    prop::collection::hash_map(key(), of, 0..8)
        .prop_map(|entries| AttributeData::Map(entries.into_iter().collect()))
}

fn event(data: AttributeData, text: String) -> JobEvent {
    JobEvent {
        id: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        account: account("acme"),
        task_id: text.clone(),
        task_type: text,
        outcome: JobOutcome::Completed,
        timestamp: "2024-12-23T10:00:00Z".into(),
        data,
        traceparent: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

/// `JSON.stringify(JSON.parse(body))` returns the body that was sent.
    #[test]
    fn javascript_round_trip_is_identity(data in map(value()), text in any::<String>()) {
        let body = event(data, text).to_canonical_json();
        let secret = Secret::parse("my-secret-key".into()).unwrap();
        let id = EventId::parse("evt_01JFS8TX800000000000000000").unwrap();
        let at = Timestamp::from_millis(1_734_948_000_000);
        let secrets = std::slice::from_ref(&secret);
        let sent = signing::sign(secrets, &id, at, body.as_bytes()).unwrap().nano;
        in_javascript(|signed| {
            let message = signed(&body, "1734948000");
            prop_assert_eq!(&message, &format!("1734948000.{body}"));
            // The documented verifier's last step, by another implementation of HMAC.
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
            let computed = hmac::sign(&key, message.as_bytes());
            prop_assert_eq!(sent, format!("v1={}", hex::encode(computed)));
            Ok(())
        })?;
    }
}

/// A document as deep as DynamoDB allows is unchanged by the round trip.
#[test]
fn deepest_document_round_trips() {
    let deep = (0..31).fold(AttributeData::Null, |inner, n| {
        if n % 2 == 0 {
            AttributeData::List(vec![inner])
        } else {
            AttributeData::Map(vec![("k".into(), inner)])
        }
    });
    let body =
        event(AttributeData::Map(vec![("deep".into(), deep)]), "t".into()).to_canonical_json();
    in_javascript(|signed| assert_eq!(signed(&body, "0"), format!("0.{body}")));
}
