//! Integers as patterns and selections write them: strict, possibly counted from the end.

/// Splits a leading integer (`-?[0-9]+`, no `+`, no `-0`) off `text`; `None` if there is none or it passes `i32`.
pub(super) fn take_int(text: &str) -> Option<(i32, &str)> {
    let sign = usize::from(text.starts_with('-'));
    let digits = text[sign..].bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(sign + digits);
    let value: i32 = number.parse().ok()?;
    // "-0" would have to mean the place after the last one; nobody means that.
    (value != 0 || sign == 0).then_some((value, rest))
}

/// The whole of `text` as an integer.
pub(super) fn int(text: &str) -> Option<i32> {
    take_int(text).and_then(|(value, rest)| rest.is_empty().then_some(value))
}

/// The whole of `text` as two integers joined by `separator`, or as one that stands for both ends.
pub(super) fn range(text: &str, separator: &str) -> Option<(i32, i32)> {
    let (first, rest) = take_int(text)?;
    if rest.is_empty() {
        return Some((first, first));
    }
    Some((first, int(rest.strip_prefix(separator)?)?))
}

/// Whether `first` is after `last` whatever the length they count in; mixed signs depend on the length.
pub(super) fn surely_backwards(first: i32, last: i32) -> bool {
    (first < 0) == (last < 0) && first > last
}

/// Where `index` points among `len` things, negative from the end; it may lie outside `0..len`.
pub(super) fn from_end(index: i32, len: usize) -> i64 {
    let index = i64::from(index);
    if index < 0 { len as i64 + index } else { index }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_strict() {
        assert_eq!(int("7"), Some(7));
        assert_eq!(int("-31"), Some(-31));
        for bad in ["", "-", "+7", "-0", "7 ", "0x7", "99999999999", "٣"] {
            assert_eq!(int(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_may_have_negative_ends() {
        assert_eq!(range("14-31", "-"), Some((14, 31)));
        assert_eq!(range("-3--1", "-"), Some((-3, -1)));
        assert_eq!(range("4--1", "-"), Some((4, -1)));
        assert_eq!(range("-5..-1", ".."), Some((-5, -1)));
        assert_eq!(range("5", ".."), Some((5, 5)));
        assert_eq!(range("5..", ".."), None);
        assert_eq!(range("..5", ".."), None);
    }

    #[test]
    fn negative_indices_count_from_the_end() {
        assert_eq!(from_end(-1, 30), 29);
        assert_eq!(from_end(-31, 30), -1);
        assert_eq!(from_end(30, 30), 30);
    }
}
