//! Which valid words lie nearest to one that was mistyped.

/// Longer inputs are compared by their first characters only: a hostile one must not cost quadratic time.
const MAX_COMPARED: usize = 96;

/// Levenshtein distance in characters: insertions, deletions and substitutions cost 1 each.
pub(super) fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(MAX_COMPARED).collect();
    let b: Vec<char> = b.chars().take(MAX_COMPARED).collect();
    // One row of the table at a time: row[j] is the distance between the first i of `a` and the first j of `b`.
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The words, those nearest to one that was mistyped first; equals keep the order they came in.
pub fn nearest_words<'a>(typed: &str, words: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    nearest(words, usize::MAX, |word| edit_distance(typed, word))
}

/// The `count` words of least `distance`, nearest first; equals keep the order they came in.
pub(super) fn nearest<'a>(
    words: impl IntoIterator<Item = &'a str>,
    count: usize,
    distance: impl Fn(&str) -> usize,
) -> Vec<&'a str> {
    let mut scored: Vec<(usize, &str)> = words.into_iter().map(|w| (distance(w), w)).collect();
    scored.sort_by_key(|&(score, _)| score);
    scored.truncate(count);
    scored.into_iter().map(|(_, word)| word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_single_character_changes() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("hook_z", "hook_z"), 0);
    }

    #[test]
    fn the_nearest_words_come_first() {
        let words = ["mean", "norm", "top"];
        let distance = |word: &str| edit_distance("nrm", word);
        assert_eq!(nearest(words, 2, distance), ["norm", "top"]);
        // Equally far: in the order given.
        assert_eq!(nearest(words, 2, |_| 0), ["mean", "norm"]);
    }
}
