//! Where a chat's messages lie in what a template made of them.
//!
//! A template is a program; the only way to know where it put a content is to watch. Each content gets an opening and a
//! closing marker of its own (private-use characters that occur nowhere else), the chat is rendered again, and if that
//! text without its markers is the real text, the markers stood exactly at the content's borders. Templates that strip
//! whitespace or cut a prefix off need the markers further inside; those that look at a content's beginning bear none
//! there, and are watched by doubling the content instead. What no trial confirms is an error, never a guess.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::chat::{Message, TurnChars};

/// Renders messages, with or without generation prompt; the error says why the template refuses.
type Render<'a> = &'a dyn Fn(&[Message], bool) -> Result<String, String>;

/// The turns, in the messages' order; `text` is `render(messages, prompt)`, and `bos` what it may begin with.
///
/// # Errors
/// The index of a message that can't be located, and why.
pub(super) fn locate(
    render: Render,
    messages: &[Message],
    prompt: bool,
    text: &str,
    bos: &str,
) -> Result<Vec<TurnChars>, (usize, String)> {
    let mut used: HashSet<char> = text.chars().collect();
    used.extend(messages.iter().flat_map(|m| m.content.chars()));
    // Two more than the messages need: a probe may hold one message more than the chat.
    let needed = 2 * (messages.len() + 2);
    let markers: Vec<char> = ('\u{100000}'..='\u{10FFFD}')
        .filter(|c| !used.contains(c))
        .take(needed)
        .collect();
    if markers.len() < needed {
        return Err((0, "there are too many messages to mark".into()));
    }
    let chat = Chat {
        render,
        messages,
        prompt,
        text,
        places: markers.iter().copied().zip(0..).collect(),
        markers,
    };
    let located = chat.contents()?;
    Ok(chat.turns(&located, bos))
}

/// Byte offsets in a content where its markers go.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    open: usize,
    close: usize,
}

impl Mark {
    /// Around all of a content.
    fn all(content: &str) -> Self {
        Self {
            open: 0,
            close: content.len(),
        }
    }

    /// Inside a content's outer whitespace.
    fn core(content: &str) -> Self {
        let open = content.len() - content.trim_start().len();
        Self {
            open,
            close: content.trim_end().len().max(open),
        }
    }
}

/// One content, located.
#[derive(Debug, Clone)]
struct Located {
    /// In the text.
    content: Range<usize>,
    /// The marks that found it; `None`: found by doubling.
    mark: Option<Mark>,
}

/// A rendered text, its markers taken out, and what each message's markers held.
struct Unmarked {
    text: String,
    contents: Vec<Option<Range<usize>>>,
}

struct Chat<'a> {
    render: Render<'a>,
    messages: &'a [Message],
    prompt: bool,
    text: &'a str,
    /// Message i opens with marker 2i and closes with 2i + 1.
    markers: Vec<char>,
    places: HashMap<char, usize>,
}

impl Chat<'_> {
    fn contents(&self) -> Result<Vec<Located>, (usize, String)> {
        // Most templates leave contents as they are or strip them: then few renders tell for all messages.
        let marks = |of: fn(&str) -> Mark| -> Vec<Option<Mark>> {
            self.messages.iter().map(|m| Some(of(&m.content))).collect()
        };
        let mut marks_now = marks(Mark::all);
        let mut found = self.verified(&marks_now);
        if found.is_none() {
            marks_now = marks(Mark::core);
            found = self.verified(&marks_now);
            if found.is_some() {
                // Whitespace may have been kept here and stripped there.
                for (i, message) in self.messages.iter().enumerate() {
                    let core = Mark::core(&message.content);
                    for wider in outward(&message.content, core) {
                        let before = marks_now[i].replace(wider);
                        match self.verified(&marks_now) {
                            Some(more) => {
                                found = Some(more);
                                break;
                            }
                            None => marks_now[i] = before,
                        }
                    }
                }
            }
        }
        if let Some(contents) = found {
            let located = contents.into_iter().zip(marks_now);
            let located = located.map(|(content, mark)| {
                Some(Located {
                    content: content?,
                    mark,
                })
            });
            if let Some(located) = located.collect() {
                return Ok(located);
            }
        }
        (0..self.messages.len())
            .map(|i| self.one(i).ok_or_else(|| (i, self.why_not(i))))
            .collect()
    }

    /// Locates one message, with no marker in the others.
    fn one(&self, i: usize) -> Option<Located> {
        let content = &self.messages[i].content;
        let core = Mark::core(content);
        let mut candidates = vec![Mark::all(content)];
        candidates.extend(outward(content, core));
        candidates.push(core);
        let marked = |mark: Mark| {
            let mut marks = vec![None; self.messages.len()];
            marks[i] = Some(mark);
            let content = self.verified(&marks)?.swap_remove(i)?;
            Some(Located {
                content,
                mark: Some(mark),
            })
        };
        let rests = self.without_prefix(content, core);
        let mut rests = rests.into_iter().filter_map(marked);
        candidates
            .into_iter()
            .find_map(marked)
            .or_else(|| rests.find(|located| self.is_cut_before(i, located)))
            .or_else(|| self.doubled(i))
    }

    /// Marks for templates that cut a prefix off a content, as the reasoning of earlier turns: the rests of it that the
    /// text holds, longest first.
    fn without_prefix(&self, content: &str, core: Mark) -> Vec<Mark> {
        const TRIALS: usize = 16;
        let kept = &content[..core.close];
        let starts: Vec<usize> = kept.char_indices().map(|(at, _)| at).collect();
        let first = starts.partition_point(|&at| !self.text.contains(&kept[at..]));
        let rests = starts[first..].iter().take(TRIALS);
        let mark = |&open| Mark {
            open,
            close: core.close,
        };
        rests.map(mark).collect()
    }

    /// Whether what stands before the mark in content `i` is really not in the text, so that the mark is at the content's
    /// very beginning there.
    fn is_cut_before(&self, i: usize, located: &Located) -> bool {
        let content = &self.messages[i].content;
        let Some(Mark { open, .. }) = located.mark else {
            return false;
        };
        let Some(before) = content[..open].chars().next_back() else {
            return false;
        };
        let unchanged = |content: String| {
            let mut messages = self.messages.to_vec();
            messages[i].content = content;
            (self.render)(&messages, self.prompt).is_ok_and(|text| text == self.text)
        };
        // Either the character before makes no difference, or the beginning makes none and the text before is another.
        unchanged([&content[..open - before.len_utf8()], &content[open..]].concat())
            || !self.text[..located.content.start].ends_with(before)
                && unchanged(format!("{}{content}", self.markers[0]))
    }

    /// Locates a content that bears no marker by writing it twice: the text must then be the same but for the second
    /// copy right after the first, and there must be only one place where that can be.
    fn doubled(&self, i: usize) -> Option<Located> {
        let content = &self.messages[i].content;
        let core = Mark::core(content);
        let middle = &content[core.open..core.close];
        if middle.is_empty() {
            return None;
        }
        let mut messages = self.messages.to_vec();
        messages[i].content.insert_str(core.close, middle);
        let twice = (self.render)(&messages, self.prompt).ok()?;
        if twice.len() != self.text.len() + middle.len() {
            return None;
        }
        let mut places = self.text.char_indices().map(|(at, _)| at).filter(|&at| {
            let after = at + middle.len();
            self.text[at..].starts_with(middle)
                && twice.starts_with(&self.text[..after])
                && twice[after..].starts_with(middle)
                && twice.ends_with(&self.text[after..])
        });
        let (Some(at), None) = (places.next(), places.next()) else {
            return None;
        };
        Some(Located {
            content: at..at + middle.len(),
            mark: None,
        })
    }

    fn why_not(&self, i: usize) -> String {
        let core = self.messages[i].content.trim();
        if core.is_empty() {
            "its content is empty and the template treats that in its own way".into()
        } else if self.text.contains(core) {
            "the template looks into its content or writes it more than once".into()
        } else {
            "the template leaves its content out or changes it".into()
        }
    }

    /// The whole turns around their contents.
    fn turns(&self, located: &[Located], bos: &str) -> Vec<TurnChars> {
        let mut order: Vec<usize> = (0..located.len()).collect();
        order.sort_by_key(|&i| (located[i].content.start, located[i].content.end));
        let mut wholes = vec![0..0; located.len()];
        let mut start = match order.first() {
            Some(&first) => self.first_header(first, &located[first], bos),
            None => 0,
        };
        for (place, &i) in order.iter().enumerate() {
            let end = located[i].content.end;
            let next = order
                .get(place + 1)
                .map(|&next| located[next].content.start);
            let tail = self.tail(i, &located[i]).unwrap_or_default();
            let fits = self.text[end..].starts_with(&tail)
                && next.is_none_or(|next| end + tail.len() <= next);
            let whole_end = if fits { end + tail.len() } else { end };
            wholes[i] = start..whole_end;
            start = whole_end;
        }
        let turn = |((message, located), whole): ((&Message, &Located), Range<usize>)| TurnChars {
            role: message.role.clone(),
            content: located.content.clone(),
            whole,
        };
        let pairs = self.messages.iter().zip(located).zip(wholes);
        pairs.map(turn).collect()
    }

    /// What ends turn `i`: what follows its content where it is the last message.
    fn tail(&self, i: usize, located: &Located) -> Option<String> {
        let prefix = &self.messages[..=i];
        let Some(mark) = located.mark else {
            let text = (self.render)(prefix, false).ok()?;
            let same = text.get(..located.content.end) == self.text.get(..located.content.end);
            return same.then(|| text[located.content.end..].to_string());
        };
        let mut marks = vec![None; prefix.len()];
        marks[i] = Some(mark);
        let mut unmarked = self.rendered(prefix, &marks, false)?;
        let content = unmarked.contents.swap_remove(i)?;
        Some(unmarked.text[content.end..].to_string())
    }

    /// Where the first turn's header begins: what the template writes before a second turn of that role, if the text
    /// before the content ends so; else all of it but BOS.
    fn first_header(&self, i: usize, located: &Located, bos: &str) -> usize {
        let leading = &self.text[..located.content.start];
        let header = located.mark.and_then(|mark| self.later_header(i, mark));
        match header {
            Some(header) if leading.ends_with(&header) => leading.len() - header.len(),
            _ if leading.starts_with(bos) => bos.len(),
            _ => 0,
        }
    }

    fn later_header(&self, i: usize, mark: Mark) -> Option<String> {
        let message = &self.messages[i];
        let other = match message.role.as_str() {
            "assistant" => "user",
            _ => "assistant",
        };
        let other = Message::new(other, "x");
        let probes = [
            vec![message.clone(), message.clone()],
            vec![message.clone(), other, message.clone()],
        ];
        probes.iter().find_map(|probe| {
            let last = probe.len() - 1;
            let before = (self.render)(&probe[..last], false).ok()?;
            let mut marks = vec![None; probe.len()];
            marks[last] = Some(mark);
            let mut unmarked = self.rendered(probe, &marks, false)?;
            let content = unmarked.contents.swap_remove(last)?;
            let header = unmarked.text[..content.start].strip_prefix(&before)?;
            (!header.is_empty()).then(|| header.to_string())
        })
    }

    /// The marked contents' ranges, by message, if the text is the real one but for the markers.
    fn verified(&self, marks: &[Option<Mark>]) -> Option<Vec<Option<Range<usize>>>> {
        let unmarked = self.rendered(self.messages, marks, self.prompt)?;
        let all_found = unmarked
            .contents
            .iter()
            .zip(marks)
            .all(|(content, mark)| content.is_some() == mark.is_some());
        (all_found && unmarked.text == self.text).then_some(unmarked.contents)
    }

    /// Renders with marks and takes the markers out; `None` where the template refuses, or where a marker is missing its
    /// partner or is there twice.
    fn rendered(
        &self,
        messages: &[Message],
        marks: &[Option<Mark>],
        prompt: bool,
    ) -> Option<Unmarked> {
        let mut messages = messages.to_vec();
        for (i, mark) in marks.iter().enumerate() {
            if let Some(Mark { open, close }) = *mark {
                let content = &mut messages[i].content;
                content.insert(close, self.markers[2 * i + 1]);
                content.insert(open, self.markers[2 * i]);
            }
        }
        let rendered = (self.render)(&messages, prompt).ok()?;
        let mut text = String::with_capacity(rendered.len());
        let mut borders = vec![None; 2 * messages.len()];
        for c in rendered.chars() {
            match self.places.get(&c) {
                None => text.push(c),
                Some(&place) => {
                    if borders.get_mut(place)?.replace(text.len()).is_some() {
                        return None;
                    }
                }
            }
        }
        let contents = borders
            .chunks_exact(2)
            .map(|border| match *border {
                [Some(open), Some(close)] if open <= close => Some(Some(open..close)),
                [None, None] => Some(None),
                _ => None,
            })
            .collect::<Option<_>>()?;
        Some(Unmarked { text, contents })
    }
}

/// The marks between a content's core and all of it: outer whitespace included on both sides, before, or after.
fn outward(content: &str, core: Mark) -> Vec<Mark> {
    let all = Mark::all(content);
    let before = Mark {
        open: all.open,
        close: core.close,
    };
    let after = Mark {
        open: core.open,
        close: all.close,
    };
    let mut wider = vec![all, before, after];
    wider.retain(|mark| *mark != core);
    wider.dedup();
    wider
}
