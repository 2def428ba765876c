//! Numbers for people.

/// `1,234,567`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1 shard`, `1,234 shards`
pub fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `1.50 GB` (powers of 1000, as disks are sold); exact below 1 kB.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, "B")
}

/// A number with an SI prefix.
pub fn scaled(n: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    let mut power = 0;
    let mut value = n;
    while value >= 1000.0 && power + 1 < prefixes.len() {
        value /= 1000.0;
        power += 1;
    }
    if power == 0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.2} {}{unit}", prefixes[power])
    }
}

/// `1 h 02 min`, `3 min 05 s`, `4.2 s`
pub fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

/// Reads `4096`, `64MiB`, `2GiB`, `1.5GB`.
///
/// # Errors
/// What is wrong and what is understood.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "kb" => 1e3,
        "m" | "mib" => 1024.0 * 1024.0,
        "mb" => 1e6,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "gb" => 1e9,
        "t" | "tib" => 1024.0_f64.powi(4),
        "tb" => 1e12,
        _ => {
            return Err(format!(
                "'{unit}' is no unit: use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, as in 2GiB"
            ));
        }
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("'{text}' is no size: write it as in 2GiB"))?;
    let bytes = value * scale;
    if (1.0..9e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!("'{text}' must be at least one byte and below 9 EB"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1000_and_of_1024() {
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("1.5kB"), Ok(1500));
        assert_eq!(parse_bytes("7"), Ok(7));
        for bad in ["", "GiB", "-1", "0", "3 parsecs", "1e99GB", "nan"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_grouped_and_scaled() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(
            (counted(1, "shard"), counted(2000, "shard")),
            ("1 shard".into(), "2,000 shards".into())
        );
        assert_eq!(bytes(1_500_000_000), "1.50 GB");
        assert_eq!(duration(3725.0), "1 h 02 min");
        assert_eq!(duration(65.4), "1 min 05 s");
    }
}
