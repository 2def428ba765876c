//! Numbers as a reader sees them. Files keep them in full.

const MINUS: char = '\u{2212}';

/// Four significant digits, trailing zeros left out; powers of ten where the point would be far away.
pub fn show(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let size = value.abs();
    let text = if size == 0.0 {
        "0".into()
    } else if !(1e-3..1e6).contains(&size) {
        scientific(value)
    } else {
        let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
        trimmed(format!("{value:.decimals$}"))
    };
    text.replace('-', &MINUS.to_string())
}

/// A tick's label: as many decimals as the step between ticks needs.
pub(super) fn tick(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-6 {
        0.0
    } else {
        value
    };
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs().max(step)) {
        return scientific(value).replace('-', &MINUS.to_string());
    }
    let decimals = (0..6)
        .find(|&d| {
            let scaled = step * 10f64.powi(d);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
        })
        .unwrap_or(6) as usize;
    format!("{value:.decimals$}").replace('-', &MINUS.to_string())
}

fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{exponent}", trimmed(mantissa.into()))
}

fn trimmed(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_to_four_digits_with_a_true_minus() {
        let shown: Vec<String> = [
            0.0,
            1.0,
            -0.123456,
            12.3456,
            1234.5678,
            123456.7,
            1e-7,
            -2.5e9,
            0.9999999,
            f64::NAN,
        ]
        .map(show)
        .to_vec();
        let expected = [
            "0",
            "1",
            "−0.1235",
            "12.35",
            "1235",
            "123457",
            "1e−7",
            "−2.5e9",
            "1",
            "–",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn ticks_have_the_decimals_of_their_step() {
        assert_eq!(tick(0.25, 0.25), "0.25");
        assert_eq!(tick(-0.5, 0.25), "−0.50");
        assert_eq!(tick(20.0, 5.0), "20");
        assert_eq!(tick(-1e-17, 0.2), "0.0");
        assert_eq!(tick(2e-5, 1e-5), "2e−5");
    }
}
