//! A DynamoDB number and its one form in JSON.
//!
//! DynamoDB numbers have up to 38 decimal digits, a double about 15. A number that the nearest double does not
//! hold exactly is digits as a string of plain digits, so that no receiver silently reads another value.

use std::cmp::Ordering;

/// A decimal number: `±0.d₁d₂d₃… × 10^exponent`, with neither leading nor trailing zeros; zero has no digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i32,
}

impl Decimal {
    /// The most digits and the widest exponent that are read: far more than DynamoDB's 38 digits and ±130,
    /// and a bound on the string that a number can become.
    const MAX_SCALE: usize = 1_000;

    /// Reads a decimal: sign, digits, fraction, exponent. `None` if `text` is not one, or is beyond any DynamoDB number.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], rest[at + 1..].parse::<i32>().ok()?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digit_count = whole.len() + fraction.len();
        if digit_count == 0
            || digit_count > Self::MAX_SCALE
            || exponent.unsigned_abs() as usize > Self::MAX_SCALE
            || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
        {
            return None;
        }
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        let leading = digits.iter().take_while(|d| **d == b'0').count();
        let trailing = digits.iter().rev().take_while(|d| **d == b'0').count();
        if leading == digits.len() {
            return Some(Self {
                negative: false,
                digits: Vec::new(),
                exponent: 0,
            });
        }
        let exponent = i32::try_from(whole.len()).ok()? - i32::try_from(leading).ok()? + exponent;
        Some(Self {
            negative,
            digits: digits[leading..digits.len() - trailing].to_vec(),
            exponent,
        })
    }

    /// Appends the number as JSON: ECMAScript's shortest form if the nearest double is exactly this decimal,
    /// else a string of plain digits.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        // A double holds every whole number of up to 15 digits, and ECMAScript writes them as they are.
        if (0..=15).contains(&self.exponent)
            && self.digits.len() <= usize::try_from(self.exponent).unwrap_or(0)
        {
            self.write_plain(out);
            return;
        }
        let mut buffer = ryu_js::Buffer::new();
        let double: f64 = self
            .scientific()
            .parse()
            .expect("a decimal is a number to Rust too");
        if double.is_finite() {
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

    fn scientific(&self) -> String {
        let digits = if self.digits.is_empty() {
            &b"0"[..]
        } else {
            &self.digits
        };
        let digits = std::str::from_utf8(digits).expect("digits are ASCII");
        format!(
            "{}0.{digits}e{}",
            if self.negative { "-" } else { "" },
            self.exponent
        )
    }

    fn write_plain(&self, out: &mut Vec<u8>) {
        let zeros = |n: i32| std::iter::repeat_n(b'0', usize::try_from(n).unwrap_or(0));
        if self.negative {
            out.push(b'-');
        }
        let whole = usize::try_from(self.exponent)
            .unwrap_or(0)
            .min(self.digits.len());
        if whole == 0 {
            out.push(b'0');
        } else {
            out.extend_from_slice(&self.digits[..whole]);
            out.extend(zeros(
                self.exponent - i32::try_from(whole).unwrap_or(i32::MAX),
            ));
        }
        if whole < self.digits.len() {
            out.push(b'.');
            out.extend(zeros(-self.exponent));
            out.extend_from_slice(&self.digits[whole..]);
        }
    }

    fn magnitude_cmp(&self, other: &Self) -> Ordering {
        match (self.digits.is_empty(), other.digits.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => self
                .exponent
                .cmp(&other.exponent)
                .then_with(|| self.digits.cmp(&other.digits)),
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
    fn a_number_that_a_double_holds_is_written_in_ecmascripts_shortest_form() {
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
    fn a_number_that_no_double_holds_is_written_as_a_string_of_plain_digits() {
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
    fn what_is_no_decimal_is_refused() {
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
