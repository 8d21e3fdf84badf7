//! "Did you mean": the nearest of the keys that an error about an unknown one lists.

/// The error's text, with the nearest known key when it is about an unknown one.
pub fn with_suggestion(error: &toml::de::Error) -> String {
    let text = error.to_string();
    match nearest(error.message()) {
        Some(key) => format!("{}\ndid you mean `{key}`?", text.trim_end()),
        None => text,
    }
}

fn nearest(message: &str) -> Option<String> {
    let rest = message.split_once("unknown field ")?.1;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    quoted
        .map(|known| (distance(wrong, known), known))
        .filter(|(d, known)| d * 5 <= known.len().max(wrong.len()) * 2)
        .min()
        .map(|(_, known)| known.to_string())
}

/// Edit distance, with a cap on what is compared: keys are short.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_suggested_and_a_far_one_is_not() {
        let message = "unknown field `listn`, expected one of `listen`, `unix`, `tls`";
        assert_eq!(nearest(message).as_deref(), Some("listen"));
        assert_eq!(nearest("unknown field `wombat`, expected `filter` or `format`"), None);
        assert_eq!(nearest("invalid type: string \"a\", expected u64"), None);
    }
}
