//! Bytes in a scenario's file: text where they are text, else hexadecimal, and one byte many times as such.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl From<&str> for Bytes {
    fn from(s: &str) -> Self {
        Self(s.as_bytes().to_vec())
    }
}

const HEX: &str = "hex:";
const FILL: &str = "fill:";
/// From here on one byte that is repeated is written as such.
const LONG: usize = 24;

impl Bytes {
    fn text(&self) -> String {
        let b = &self.0;
        if b.len() >= LONG && b.iter().all(|x| *x == b[0]) {
            return format!("{FILL}{}:{:02x}", b.len(), b[0]);
        }
        match std::str::from_utf8(b) {
            Ok(s) if !s.starts_with(HEX) && !s.starts_with(FILL) => s.to_string(),
            _ => HEX.to_string() + &b.iter().map(|x| format!("{x:02x}")).collect::<String>(),
        }
    }

    fn parse(s: &str) -> Result<Self, String> {
        if let Some(hex) = s.strip_prefix(HEX) {
            let digits: Option<Vec<u8>> = hex
                .chars()
                .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
                .collect();
            return match digits {
                Some(d) if d.len() % 2 == 0 => {
                    Ok(Self(d.chunks(2).map(|p| p[0] << 4 | p[1]).collect()))
                }
                _ => Err(format!(
                    "found {s:?}; `hex:` takes pairs of hexadecimal digits"
                )),
            };
        }
        if let Some(fill) = s.strip_prefix(FILL) {
            let parsed = fill.split_once(':').and_then(|(n, b)| {
                let n: usize = n.parse().ok().filter(|n| *n <= 64 << 20)?;
                Some(vec![u8::from_str_radix(b, 16).ok()?; n])
            });
            return parsed
                .map(Self)
                .ok_or_else(|| format!("found {s:?}; expected `fill:LENGTH:HH`"));
        }
        Ok(Self::from(s))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_come_back() {
        for b in [
            &b""[..],
            b"plain",
            b"hex:00",
            b"fill:3:00",
            &[0xff, 0, 1],
            &[7; 5000],
            &[b'a'; 23],
        ] {
            let text = Bytes(b.to_vec()).text();
            assert!(text.len() < 64);
            assert_eq!(Bytes::parse(&text).unwrap().0, b);
        }
        for bad in [
            "hex:0",
            "hex:zz",
            "fill:1",
            "fill:x:00",
            "fill:99999999999:00",
        ] {
            assert!(Bytes::parse(bad).is_err(), "{bad}");
        }
    }
}
