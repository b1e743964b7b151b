//! Enough of Rust's lexical rules to tell code from comments and literals.

/// The text with everything in comments, strings and character literals blanked; lines stay where they are.
pub fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, is_code) = next(rest, out.chars().next_back());
        // A rule that finds no end takes the remainder, one that finds nothing a single character.
        let (piece, tail) = rest.split_at(length.max(first.len_utf8()).min(rest.len()));
        if is_code {
            out.push_str(piece);
        } else {
            out.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = tail;
    }
    out
}

/// Length in bytes of the next piece, and whether it is code.
fn next(rest: &str, before: Option<char>) -> (usize, bool) {
    let in_word = before.is_some_and(is_word);
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), false);
    }
    if rest.starts_with('"') {
        return (quoted(rest), false);
    }
    if rest.starts_with('\'') {
        return character(rest).map_or((1, true), |length| (length, false));
    }
    if !in_word && let Some(length) = raw_string(rest) {
        return (length, false);
    }
    (0, true)
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(pair) = rest.as_bytes().get(at..at + 2) {
        match pair {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    rest.len()
}

/// `'x'` or `'\n'`; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first != '\\' {
        return chars.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1);
    }
    chars.next()?;
    chars.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1)
}

fn raw_string(rest: &str) -> Option<usize> {
    let body = ["br", "cr", "r"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let inside = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let opening = rest.len() - inside.len();
    Some(inside.find(&end).map_or(rest.len(), |at| opening + at + end.len()))
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Numbers, from 1, of the lines in which that word stands by itself.
pub fn lines_with(text: &str, word: &str) -> Vec<usize> {
    let holds = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let free = |c: Option<char>| !c.is_some_and(is_word);
            free(line[..at].chars().next_back()) && free(line[at + word.len()..].chars().next())
        })
    };
    text.lines().enumerate().filter(|(_, line)| holds(line)).map(|(index, _)| index + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let table = [
            ("let a = 1; // unsafe", "let a = 1;          "),
            ("a /* x /* y */ z */ b", "a                   b"),
            ("a /* x\ny */ b", "a     \n     b"),
            (r#"f("un\"safe") b"#, "f(          ) b"),
            (r##"f(r#"a"b"#) c"##, "f(        ) c"),
            (r#"f(br"\") c"#, "f(     ) c"),
            ("for_r\"\"", "for_r  "),
            ("m('\"', '\\'', b'x')", "m(   ,     , b   )"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("\"never ends", "           "),
            ("'ä' ü", "    ü"),
        ];
        for (text, expected) in table {
            assert_eq!(code_only(text), expected, "{text}");
        }
    }

    #[test]
    fn words_stand_by_themselves() {
        let table = [
            ("unsafe {\n}\nunsafe fn", vec![1, 3]),
            ("forbid(unsafe_code)", vec![]),
            ("an_unsafe()", vec![]),
            ("unsafe_op; unsafe", vec![1]),
        ];
        for (text, expected) in table {
            assert_eq!(lines_with(text, "unsafe"), expected, "{text}");
        }
    }
}
