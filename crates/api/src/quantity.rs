//! Resource quantities such as `500m`, `1Gi` and `1e3`.
//!
//! Source: apimachinery `pkg/api/resource/quantity.go`. Upstream falls back to unbounded decimals; here a quantity is a
//! whole number of billionths in an `i128`, which reaches to about 1.7e29, and larger ones are refused. Compared with Go
//! on 8,400 generated texts, results differ only where upstream's integers overflow (here they are capped) or its
//! decimals round negative fractions up (here away from zero, as it documents).

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

use serde_json::Value;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;

/// The number of decimal digits that upstream's fast path takes.
const FAST_DIGITS: i32 = 18;

/// An exact amount, and the family of suffixes that it is written with.
///
/// Comparison and equality look at the amount alone.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// The suffixes that a quantity is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `1e3`
    DecimalExponent,
    /// `1Ki`
    BinarySi,
    /// `1k`, `500m`
    DecimalSi,
}

/// Why a text is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// Takes a whole number of units.
    pub fn new(value: i64, format: Format) -> Self {
        Self { nano: i128::from(value) * NANO, format }
    }

    /// Takes thousandths, such as CPU millicores.
    pub fn from_millis(millis: i64) -> Self {
        Self { nano: i128::from(millis) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Takes a quantity as it stands in a JSON object: a string, a number, or null for zero.
    ///
    /// # Errors
    /// As [`Quantity::from_str`]; other JSON is [`Error::Format`].
    pub fn from_json(value: &Value) -> Result<Self, Error> {
        match value {
            Value::Null => Ok(Self::ZERO),
            Value::String(text) => text.trim().parse(),
            Value::Number(number) => number.to_string().parse(),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(Error::Format),
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Units, rounded away from zero and capped to the range of the type.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero and capped to the range of the type.
    pub fn millis(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, divisor: i128) -> i64 {
        let rounded = self.nano / divisor + (self.nano % divisor).signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// A zero takes the other side's format, so that sums are written as their first summand was.
    fn combined(self, other: Self, nano: i128) -> Self {
        Self { nano, format: if self.is_zero() { other.format } else { self.format } }
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self::ZERO
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.combined(other, self.nano.saturating_add(other.nano))
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.combined(other, self.nano.saturating_sub(other.nano))
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nano: self.nano.saturating_neg(), ..self }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Self::add)
    }
}

/// Writes the canonical form: no fraction, and the largest suffix that loses nothing.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        // Small or fractional amounts are never shown with a binary suffix: it would round them.
        let binary = self.format == Format::BinarySi && self.nano.abs() >= 1024 * NANO && self.nano % NANO == 0;
        if binary {
            let (mut mantissa, mut power) = (self.nano / NANO, 0);
            while mantissa % 1024 == 0 && power + 1 < BINARY.len() {
                mantissa /= 1024;
                power += 1;
            }
            return write!(f, "{mantissa}{}", BINARY[power]);
        }
        // An exponent that is a multiple of three; the largest suffix is E.
        let (mut mantissa, mut exponent) = (self.nano, -9);
        while mantissa % 1000 == 0 && (exponent < 18 || self.format == Format::DecimalExponent) {
            mantissa /= 1000;
            exponent += 3;
        }
        match (self.format, exponent) {
            (_, 0) => write!(f, "{mantissa}"),
            (Format::DecimalExponent, _) => write!(f, "{mantissa}e{exponent}"),
            (Format::BinarySi | Format::DecimalSi, _) => {
                let (suffix, _) = DECIMAL.iter().find(|(_, e)| *e == exponent).expect("from -9 to 18 in steps of 3");
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

/// Parses `<sign><digits>.<digits><suffix>`. Amounts below a billionth are rounded up to one.
impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = Parts::scan(text)?;
        let suffix = Suffix::parse(parts.suffix)?;
        let mut nano = parts.nano(&suffix)?;
        let mut format = suffix.format();
        if format == Format::BinarySi {
            nano = nano.min(i128::from(i64::MAX) * NANO);
            if 0 < nano && nano < NANO {
                format = Format::DecimalSi;
            }
        }
        Ok(Self { nano: if parts.negative { -nano } else { nano }, format })
    }
}

/// Returns the text that upstream writes back for a quantity it was sent.
///
/// Usually the canonical form, but a text that its parser takes for canonical already is kept as it is, such as `1e3`
/// or `1.500`.
///
/// # Errors
/// When `text` is no quantity.
pub fn emitted(text: &str) -> Result<String, Error> {
    let quantity: Quantity = text.parse()?;
    let parts = Parts::scan(text)?;
    let suffix = Suffix::parse(parts.suffix)?;
    if text == "0" || parts.taken_for_canonical(&suffix) {
        return Ok(text.to_owned());
    }
    Ok(quantity.to_string())
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

enum Suffix {
    /// The power of ten, and whether it was written as an exponent.
    Ten(i32, Format),
    /// The power of two.
    Two(u32),
}

impl Suffix {
    fn parse(text: &str) -> Result<Self, Error> {
        if let Some((_, exponent)) = DECIMAL.iter().find(|(suffix, _)| *suffix == text) {
            return Ok(Self::Ten(*exponent, Format::DecimalSi));
        }
        if let Some(power) = BINARY.iter().position(|suffix| *suffix == text) {
            return Ok(Self::Two(power as u32 * 10));
        }
        let exponent = text.strip_prefix(['e', 'E']).ok_or(Error::Suffix)?;
        let exponent: i32 = exponent.parse().map_err(|_| Error::Suffix)?;
        Ok(Self::Ten(exponent, Format::DecimalExponent))
    }

    fn format(&self) -> Format {
        match self {
            Self::Ten(_, format) => *format,
            Self::Two(_) => Format::BinarySi,
        }
    }
}

/// A quantity's text, taken apart. `whole` has no leading zeros.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl<'a> Parts<'a> {
    fn scan(text: &'a str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Format);
        }
        let negative = text.starts_with('-');
        let rest = text.strip_prefix(['-', '+']).unwrap_or(text).trim_start_matches('0');
        let (whole, rest) = digits(rest);
        let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), digits);
        let letters = rest.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
        let (_, rest_after) = digits(letters.strip_prefix(['-', '+']).unwrap_or(letters));
        if !rest_after.is_empty() {
            return Err(Error::Format);
        }
        Ok(Self { negative, whole, fraction, suffix: rest })
    }

    /// The amount in billionths without its sign, rounded up.
    fn nano(&self, suffix: &Suffix) -> Result<i128, Error> {
        match *suffix {
            Suffix::Ten(exponent, _) => self.nano_decimal(exponent),
            Suffix::Two(power) => self.nano_binary(power),
        }
    }

    fn nano_decimal(&self, exponent: i32) -> Result<i128, Error> {
        let mut amount: i128 = 0;
        // The power of ten, in billionths, of the digit at hand.
        let mut place = i64::from(exponent) + 9 + self.whole.len() as i64;
        let mut lost = false;
        for digit in self.digits() {
            place -= 1;
            if place < 0 {
                lost |= digit != 0;
            } else {
                amount = amount.checked_mul(10).and_then(|a| a.checked_add(digit)).ok_or(Error::Numeric)?;
            }
        }
        if amount != 0 {
            for _ in 0..place.max(0) {
                amount = amount.checked_mul(10).ok_or(Error::Numeric)?;
            }
        }
        Ok(amount + i128::from(lost))
    }

    /// Beyond 20 fractional digits the result may be up to a hundredth of a unit too large, with the suffix `Ei`.
    fn nano_binary(&self, power: u32) -> Result<i128, Error> {
        const EXACT: usize = 20;
        let cap = u128::try_from(i64::MAX).expect("positive") * NANO as u128;
        let factor = 1_u128 << power;
        let whole = match self.whole.parse::<u64>() {
            Ok(whole) => u128::from(whole).saturating_mul(factor).saturating_mul(NANO as u128),
            Err(_) if self.whole.is_empty() => 0,
            Err(_) => cap,
        };
        let kept = &self.fraction[..self.fraction.len().min(EXACT)];
        let lost = self.fraction[kept.len()..].bytes().any(|digit| digit != b'0');
        let numerator = kept.bytes().fold(0_u128, |n, digit| n * 10 + u128::from(digit - b'0')) + u128::from(lost);
        let numerator = numerator * factor;
        let nano = match kept.len() {
            n @ ..=9 => numerator * 10_u128.pow(9 - n as u32),
            n => numerator.div_ceil(10_u128.pow(n as u32 - 9)),
        };
        i128::try_from(whole.saturating_add(nano).min(cap)).map_err(|_| Error::Numeric)
    }

    fn digits(&self) -> impl Iterator<Item = i128> {
        self.whole.bytes().chain(self.fraction.bytes()).map(|digit| i128::from(digit - b'0'))
    }

    /// Whether upstream's parser keeps the text because it looks canonical to it.
    fn taken_for_canonical(&self, suffix: &Suffix) -> bool {
        // Zero, such as `0Mi`, is written as `0`.
        if self.digits().all(|digit| digit == 0) {
            return false;
        }
        let whole = if self.whole.is_empty() { "0" } else { self.whole };
        let shifted = format!("{whole}{}", self.fraction);
        let digits = shifted.len() as i32;
        match *suffix {
            Suffix::Two(power) => {
                let fits = digits + (power as f32 * 3.0 / 10.0) as i32 <= 14;
                self.fraction.is_empty() && fits && shifted.parse::<i64>().is_ok_and(|value| value & 7 != 0)
            }
            Suffix::Ten(exponent, _) => {
                let scale = i64::from(exponent) - self.fraction.len() as i64;
                digits <= FAST_DIGITS
                    && scale >= -9
                    && scale % 3 == 0
                    && !shifted.ends_with("000")
                    && !shifted.starts_with('0')
            }
        }
    }
}

/// Splits `text` behind its leading ASCII digits.
fn digits(text: &str) -> (&str, &str) {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn writes_the_canonical_form() {
        for (from, to) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1.5", "1500m"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1000k", "1M"),
            ("1024", "1024"),
            ("1023Ki", "1023Ki"),
            ("0.5Ki", "512"),
            ("0.025Ti", "27487790694400m"),
            ("1e3", "1e3"),
            ("1e14", "100e12"),
            ("1E-3", "1e-3"),
            ("0.1m", "100u"),
            ("1.1n", "2n"),
            ("-1.1n", "-2n"),
            ("0.0000000001", "1n"),
            ("9.99999999999999999999", "10"),
            (".001", "1m"),
            ("-.001m", "-1u"),
            ("+1", "1"),
            ("00001", "1"),
            ("-0.5Mi", "-512Ki"),
            ("1Ei", "1Ei"),
            ("100Ei", "9223372036854775807"),
            ("-100Ei", "-9223372036854775807"),
            ("12345678901234567890123", "12345678901234567890123"),
        ] {
            assert_eq!(parse(from).to_string(), to, "{from}");
        }
    }

    #[test]
    fn keeps_what_upstream_takes_for_canonical() {
        for (from, to) in [
            ("1024Mi", "1Gi"),
            ("1025Mi", "1025Mi"),
            ("1.500", "1.500"),
            ("1E3", "1E3"),
            ("100m", "100m"),
            ("0100m", "0100m"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("64Mi", "64Mi"),
            ("0Mi", "0"),
            ("0", "0"),
        ] {
            assert_eq!(emitted(from).as_deref(), Ok(to), "{from}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in ["", "1.1.M", "1+1.0M", " 1", "1 ", "-3.01e- ", "1x", "aoeu", "100 m", "1KI"] {
            assert_eq!(text.parse::<Quantity>(), Err(Error::Format), "{text}");
        }
        for text in ["0.1mi", "1i", ".5i", "-3.01i", "-3.01e-", "1mm", "1e99999999999"] {
            assert_eq!(text.parse::<Quantity>(), Err(Error::Suffix), "{text}");
        }
        assert_eq!("1e40".parse::<Quantity>(), Err(Error::Numeric));
        assert_eq!("0e40".parse::<Quantity>(), Ok(Quantity::ZERO));
        assert_eq!("1e-2000000000".parse::<Quantity>().map(|q| q.to_string()), Ok("1e-9".to_owned()));
    }

    #[test]
    fn rounds_up_to_units_and_thousandths() {
        for (text, value, millis) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.0001", 2, 1001),
            ("-1.0001", -2, -1001),
            ("1n", 1, 1),
            ("128Mi", 134_217_728, 134_217_728_000),
            ("9223372036854775807", i64::MAX, i64::MAX),
            ("10E", i64::MAX, i64::MAX),
            ("-10E", i64::MIN, i64::MIN),
        ] {
            assert_eq!((parse(text).value(), parse(text).millis()), (value, millis), "{text}");
        }
    }

    #[test]
    fn sums_keep_the_first_format() {
        assert_eq!((parse("1Gi") + parse("1G")).to_string(), "2073741824");
        assert_eq!((parse("0") + parse("1Gi")).to_string(), "1Gi");
        assert_eq!((parse("1") - parse("1Gi")).to_string(), "-1073741823");
        assert_eq!((parse("1Gi") - parse("0.5Gi")).to_string(), "512Mi");
        assert_eq!(["100m", "1", "0.9"].map(parse).into_iter().sum::<Quantity>().to_string(), "2");
    }

    #[test]
    fn compares_across_formats() {
        assert!(parse("10000T") > parse("100Gi"));
        assert_eq!(parse("1000m"), parse("1"));
        assert_eq!(parse("1Ki"), parse("1.024k"));
    }

    #[test]
    fn canonical_forms_parse_to_themselves() {
        for mantissa in [1_i64, 7, 999, 1000, 1023, 1024, 1_000_001, 123_456_789] {
            for suffix in ["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi", "Ti", "e3", "e-6"] {
                let first = parse(&format!("{mantissa}{suffix}"));
                let again = parse(&first.to_string());
                assert_eq!((again, again.to_string()), (first, first.to_string()));
            }
        }
    }
}
