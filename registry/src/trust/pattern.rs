//! Path patterns of delegations: shell-style, one path part at a time, so no wildcard crosses `/`.

/// Whether `path` matches `pattern`; case matters, `*` is any run, `?` any one character, `[a-c]`
/// and `[!a-c]` one character of or outside a set; none of them matches `/`.
#[must_use]
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let (patterns, paths) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == paths.clone().count()
        && patterns.zip(paths).all(|(pattern, part)| {
            let pattern: Vec<char> = pattern.chars().collect();
            let part: Vec<char> = part.chars().collect();
            part_matches(&pattern, &part)
        })
}

/// Greedy matching with one point to come back to: time is pattern length times text length.
fn part_matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => set_matches(&pattern[p..], text[t]),
            Some(c) => (*c == text[t]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            // Let the last star take one character more.
            (None, Some((star_p, star_t))) => {
                star = Some((star_p, star_t + 1));
                p = star_p + 1;
                t = star_t + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How many pattern characters the set at `pattern[0] == '['` takes, if `c` is in it. A `[` without
/// its `]` stands for itself.
fn set_matches(pattern: &[char], c: char) -> Option<usize> {
    let negated = pattern.get(1) == Some(&'!');
    let first = if negated { 2 } else { 1 };
    // A `]` right after the opening is a member.
    let close = (first + 1..pattern.len()).find(|i| pattern[*i] == ']');
    let Some(close) = close else { return (c == '[').then_some(1) };
    let (mut i, mut found) = (first, false);
    while i < close {
        if i + 2 < close && pattern[i + 1] == '-' {
            found |= (pattern[i]..=pattern[i + 2]).contains(&c);
            i += 3;
        } else {
            found |= pattern[i] == c;
            i += 1;
        }
    }
    (found != negated).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards_stay_within_their_part() {
        for (pattern, path, expected) in [
            ("*", "a", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("team/*", "team/x", true),
            ("team/*", "team/x/y", false),
            ("team/*", "teams/x", false),
            ("targets/*.tgz", "targets/foo.tgz", true),
            ("targets/*.tgz", "targets/foo.txt", false),
            ("foo-version-?.tgz", "foo-version-a.tgz", true),
            ("foo-version-?.tgz", "foo-version-alpha.tgz", false),
            ("*.tgz", "/foo.tgz", false),
            ("README.md", "README.MD", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[a", "[a", true),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXb", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn many_stars_do_not_take_forever() {
        assert!(!matches(&"*a".repeat(200), &"b".repeat(5_000)));
    }

    proptest! {
        #[test]
        fn a_pattern_without_wildcards_matches_itself_only(a in "[a-c/]{0,6}", b in "[a-c/]{0,6}") {
            prop_assert_eq!(matches(&a, &b), a == b);
        }

        #[test]
        fn no_pattern_panics(pattern in "[\\[\\]!*?a-c/-]{0,12}", path in "[a-c/\\]\\[-]{0,8}") {
            let _ = matches(&pattern, &path);
        }
    }
}
