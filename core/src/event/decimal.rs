//! A DynamoDB number and its canonical JSON.
//!
//! DynamoDB numbers have up to 38 decimal digits, doubles about 15. A number that no double
//! represents exactly is written as a string of plain digits, so that no receiver silently reads
//! another value.

use std::{cmp::Ordering, iter::repeat_n};

/// A decimal number `±0.d₁d₂d₃… × 10^exponent` without leading or trailing zeros. Zero has no
/// digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i32,
}

impl Decimal {
    const ZERO: Self = Self {
        negative: false,
        digits: Vec::new(),
        exponent: 0,
    };
    /// The most digits and the largest exponent that are parsed. DynamoDB has 38 digits and ±130;
    /// the limit bounds the length of the plain form.
    const MAX_SCALE: usize = 1_000;

    /// Parses sign, digits, fraction and exponent; `None` if `text` is malformed or out of range.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
            Some(index) => (&unsigned[..index], unsigned[index + 1..].parse().ok()?),
            None => (unsigned, 0_i32),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [whole.as_bytes(), fraction.as_bytes()].concat();
        if digits.is_empty()
            || digits.len() > Self::MAX_SCALE
            || exponent.unsigned_abs() as usize > Self::MAX_SCALE
            || !digits.iter().all(u8::is_ascii_digit)
        {
            return None;
        }
        let Some(first) = digits.iter().position(|digit| *digit != b'0') else {
            return Some(Self::ZERO);
        };
        let last = digits.iter().rposition(|digit| *digit != b'0')?;
        Some(Self {
            negative,
            exponent: i32::try_from(whole.len()).ok()? - i32::try_from(first).ok()? + exponent,
            digits: digits[first..=last].to_vec(),
        })
    }

    /// Appends ECMAScript's shortest form if the nearest double has exactly this value, else a
    /// string of plain digits.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        if self.is_short_integer() {
            self.write_plain(out);
            return;
        }
        let double: f64 = self
            .to_scientific()
            .parse()
            .expect("the scientific form is a number");
        if double.is_finite() {
            let mut buffer = ryu_js::Buffer::new();
            let shortest = buffer.format_finite(double);
            if Self::parse(shortest).as_ref() == Some(self) {
                out.extend_from_slice(shortest.as_bytes());
                return;
            }
        }
        out.push(b'"');
        self.write_plain(out);
        out.push(b'"');
    }

    /// Whether this is an integer of at most 15 digits. Doubles hold all of them, and ECMAScript
    /// writes their plain digits.
    fn is_short_integer(&self) -> bool {
        match usize::try_from(self.exponent) {
            Ok(exponent) => exponent <= 15 && self.digits.len() <= exponent,
            Err(_) => false,
        }
    }

    fn to_scientific(&self) -> String {
        let sign = if self.negative { "-" } else { "" };
        let digits = std::str::from_utf8(&self.digits).expect("digits are ASCII");
        let digits = if digits.is_empty() { "0" } else { digits };
        format!("{sign}0.{digits}e{}", self.exponent)
    }

    fn write_plain(&self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        let scale = usize::try_from(self.exponent).unwrap_or(0);
        let (whole, fraction) = self.digits.split_at(scale.min(self.digits.len()));
        if whole.is_empty() {
            out.push(b'0');
        } else {
            out.extend_from_slice(whole);
            out.extend(repeat_n(b'0', scale - whole.len()));
        }
        if !fraction.is_empty() {
            let leading_zeros = usize::try_from(-self.exponent).unwrap_or(0);
            out.push(b'.');
            out.extend(repeat_n(b'0', leading_zeros));
            out.extend_from_slice(fraction);
        }
    }

    fn magnitude_cmp(&self, other: &Self) -> Ordering {
        match (self.digits.is_empty(), other.digits.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => (self.exponent, &self.digits).cmp(&(other.exponent, &other.digits)),
        }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.magnitude_cmp(other),
            (true, true) => other.magnitude_cmp(self),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> String {
        let mut out = Vec::new();
        Decimal::parse(text).expect(text).write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn exact_double_has_shortest_form() {
        for (text, written) in [
            ("6", "6"),
            ("6.0", "6"),
            ("-0", "0"),
            ("0.000", "0"),
            ("0E5", "0"),
            ("+5", "5"),
            ("100", "100"),
            ("1E+3", "1000"),
            ("0.1", "0.1"),
            (".5", "0.5"),
            ("5.", "5"),
            ("-12.50", "-12.5"),
            ("1e21", "1e+21"),
            ("100000000000000000000", "100000000000000000000"),
            ("0.0000001", "1e-7"),
            ("0.000001", "0.000001"),
            ("9007199254740992", "9007199254740992"),
            ("1E-130", "1e-130"),
            ("9.9999999999999E+125", "9.9999999999999e+125"),
        ] {
            assert_eq!(json(text), written, "{text}");
        }
    }

    #[test]
    fn inexact_number_becomes_string() {
        for (text, written) in [
            ("9007199254740993", "\"9007199254740993\""),
            ("12345678901234567890", "\"12345678901234567890\""),
            ("0.1234567890123456789", "\"0.1234567890123456789\""),
            (
                "-0.00012345678901234567890",
                "\"-0.0001234567890123456789\"",
            ),
            (
                "1.2345678901234567890123E+25",
                "\"12345678901234567890123000\"",
            ),
            ("12345678901234567.5", "\"12345678901234567.5\""),
            (
                "99999999999999999999999999999999999999",
                "\"99999999999999999999999999999999999999\"",
            ),
            ("1E+400", &format!("\"1{}\"", "0".repeat(400))),
        ] {
            assert_eq!(json(text), written, "{text}");
        }
    }

    #[test]
    fn malformed_number_is_refused() {
        for text in [
            "", "-", ".", "e5", "1e", "1e+", "0x10", "NaN", "Infinity", "1 ", "1_000", "١",
            "1e99999", "--1",
        ] {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_ordered_by_value() {
        let ordered = [
            "-10", "-9.5", "-1E-5", "0", "1E-5", "0.5", "9", "10", "1E+20",
        ];
        for pair in ordered.windows(2) {
            assert!(
                Decimal::parse(pair[0]) < Decimal::parse(pair[1]),
                "{pair:?}"
            );
        }
        assert_eq!(Decimal::parse("1.50"), Decimal::parse("15e-1"));
    }
}
