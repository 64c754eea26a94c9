//! A reply while it is written: the sentences that its tokens make, what the guard has said of them, and how far it may
//! be delivered for that.
//!
//! ```text
//! tokens -> Reply -> deltas, held back -> sentences -> guard -> delivered up to the last sentence that it passed
//! ```
//!
//! The guard reads thinking and content apart, each in pieces: a sentence each, or what a token added where the guard
//! reads tokens. At the end of a sentence there is a [`Mark`], to which the reply can go back.

use std::collections::VecDeque;

use judge::{Moderation, Scored};
use model::engine::Draw;
use serde_json::{Value, json};

use crate::error::Result;
use crate::guardrail::{Guardrail, verdict};
use crate::reply::{Delta, Reply};

/// Most tokens of a sentence: one that does not end by itself is cut there.
pub(crate) const SENTENCE_TOKENS: usize = 64;

/// Which of its two texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Thinking,
    Content,
}

/// One text, in pieces, as the guard reads it.
#[derive(Default)]
struct Track {
    pieces: Vec<String>,
    /// Where each piece starts and ends, in characters of the text that is delivered. The arguments of a tool call are
    /// read by the guard and take no place.
    spans: Vec<(usize, usize)>,
    verdicts: Vec<Scored<Moderation>>,
    /// The piece that has not ended, and its characters.
    open: String,
    open_length: usize,
}

impl Track {
    fn close(&mut self) {
        if !self.open.is_empty() {
            let start = self.spans.last().map_or(0, |span| span.1);
            self.spans.push((start, start + self.open_length));
            self.pieces.push(std::mem::take(&mut self.open));
            self.open_length = 0;
        }
    }

    /// Goes back to where it had `count` pieces.
    fn truncate(&mut self, count: usize) {
        self.pieces.truncate(count);
        self.spans.truncate(count);
        self.verdicts.truncate(count);
        self.open.clear();
        self.open_length = 0;
    }

    /// The first verdict that is unsafe, else the last one, with the risk of every piece.
    fn json(&self, guardrail: &Guardrail) -> Value {
        let is_unsafe = |scored: &&Scored<Moderation>| {
            let moderation = scored.scored();
            moderation.is_some_and(|moderation| guardrail.is_unsafe(moderation))
        };
        let Some(told) = self.verdicts.iter().find(is_unsafe).or(self.verdicts.last()) else {
            return Value::Null;
        };
        let risk = |(&(start, end), scored): (&(usize, usize), &Scored<Moderation>)| json!({"start": start, "end": end, "risk": scored.scored().map(|moderation| moderation.score)});
        let mut told = verdict(told);
        told["risk_line"] = self.spans.iter().zip(&self.verdicts).map(risk).collect();
        told
    }
}

/// The end of a sentence.
struct Mark {
    tokens: usize,
    writes: usize,
    reply: Reply,
    /// How many pieces of thinking and of content stand before it.
    pieces: [usize; 2],
}

/// What one token added, or the reply's end.
struct Written {
    number: usize,
    deltas: Vec<Delta>,
    draw: Option<Draw>,
}

/// A reply and what is known of it.
pub(crate) struct Draft {
    reply: Reply,
    /// Its tokens.
    ids: Vec<u32>,
    writes: usize,
    /// What has not been delivered.
    held: VecDeque<Written>,
    /// Whether a guard reads it, and whether it does so token by token.
    watched: bool,
    by_token: bool,
    thinking: Track,
    content: Track,
    /// Of which text the last delta was, and that text since the last mark.
    side: Side,
    sentence: String,
    sentence_tokens: usize,
    /// The last mark that the guard passed, and those after it.
    safe: Mark,
    marks: VecDeque<Mark>,
    /// Why the guard is asked no more.
    silence: Option<String>,
    /// Tokens that were drawn and taken back, and how many of them were thinking.
    taken_back: (usize, usize),
}

impl Draft {
    /// A reply of which nothing is known yet, and the guard that reads it, if any.
    pub(crate) fn new(reply: Reply, guardrail: Option<&Guardrail>) -> Self {
        Self {
            safe: Mark {
                tokens: 0,
                writes: 0,
                reply: reply.clone(),
                pieces: [0; 2],
            },
            reply,
            ids: Vec::new(),
            writes: 0,
            held: VecDeque::new(),
            watched: guardrail.is_some(),
            by_token: guardrail.is_some_and(|guardrail| guardrail.reads_tokens),
            thinking: Track::default(),
            content: Track::default(),
            side: Side::Thinking,
            sentence: String::new(),
            sentence_tokens: 0,
            marks: VecDeque::new(),
            silence: None,
            taken_back: (0, 0),
        }
    }

    /// Whether a stop text has come up; nothing is to be added after it.
    pub(crate) fn stopped(&self) -> bool {
        self.reply.stopped()
    }

    /// Whether a tool call was found.
    pub(crate) fn called(&self) -> bool {
        self.reply.called()
    }

    /// How many tokens were drawn for it, and how many of them were thinking.
    pub(crate) fn drawn(&self) -> (usize, usize) {
        let (tokens, thinking) = self.taken_back;
        (
            tokens + self.reply.tokens(),
            thinking + self.reply.thinking_tokens(),
        )
    }

    /// Adds a token; `ends` says that it ends the turn and has no text.
    pub(crate) fn push(&mut self, draw: Draw, ends: bool) -> Result<()> {
        let before = self.watched.then(|| self.mark());
        self.ids.push(draw.id);
        let deltas = self.reply.push(draw.id, ends)?;
        self.write(before, deltas, (!ends).then_some(draw));
        Ok(())
    }

    /// Ends it: nothing is to be added.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let deltas = self.reply.finish()?;
        self.write(None, deltas, None);
        if self.watched {
            let end = self.mark();
            self.end_sentence(end);
        }
        Ok(())
    }

    fn write(&mut self, before: Option<Mark>, deltas: Vec<Delta>, draw: Option<Draw>) {
        self.writes += 1;
        if self.watched {
            if let Some(before) = before
                && self.begins_sentence(&deltas)
            {
                self.end_sentence(before);
            }
            for delta in &deltas {
                self.read(delta);
            }
            if self.by_token {
                self.thinking.close();
                self.content.close();
            }
            self.sentence_tokens += 1;
            let cut =
                self.sentence_tokens >= SENTENCE_TOKENS || matches!(deltas.last(), Some(Delta::Call(_)));
            if !is_blank(&self.sentence) && (cut || is_over(&self.sentence)) {
                let now = self.mark();
                self.end_sentence(now);
            }
        }
        self.held.push_back(Written {
            number: self.writes,
            deltas,
            draw,
        });
    }

    /// Whether these deltas are the first of another sentence.
    fn begins_sentence(&self, deltas: &[Delta]) -> bool {
        let Some((side, text)) = deltas.first().map(spoken) else {
            return false;
        };
        let space = &text[..text.len() - text.trim_start().len()];
        let apart = space.contains('\n') || (!space.is_empty() && is_whole(&self.sentence));
        !is_blank(&self.sentence) && (side != self.side || apart)
    }

    /// Adds to what the guard reads.
    fn read(&mut self, delta: &Delta) {
        let (side, text) = spoken(delta);
        if side != self.side {
            let track = self.track(self.side);
            // Blank space alone is nothing to judge.
            if !is_blank(&track.open) {
                track.close();
            }
            self.side = side;
            self.sentence.clear();
            self.sentence_tokens = 0;
        }
        self.sentence.push_str(text);
        let shown = !matches!(delta, Delta::Call(_));
        let track = self.track(side);
        track.open.push_str(text);
        if shown {
            track.open_length += text.chars().count();
        }
    }

    fn track(&mut self, side: Side) -> &mut Track {
        match side {
            Side::Thinking => &mut self.thinking,
            Side::Content => &mut self.content,
        }
    }

    fn mark(&self) -> Mark {
        Mark {
            tokens: self.ids.len(),
            writes: self.writes,
            reply: self.reply.clone(),
            pieces: [0; 2],
        }
    }

    fn end_sentence(&mut self, mut mark: Mark) {
        for track in [&mut self.thinking, &mut self.content] {
            if !is_blank(&track.open) {
                track.close();
            }
        }
        mark.pieces = [self.thinking.pieces.len(), self.content.pieces.len()];
        self.marks.push_back(mark);
        self.sentence.clear();
        self.sentence_tokens = 0;
    }

    /// What the guard is to be asked next: a text's pieces, and how many of them it has judged. One sentence at a time,
    /// so that none waits for the verdict on another; all tokens that there are, for they cost one reading.
    pub(crate) fn question(&self) -> Option<(Side, Vec<String>, usize)> {
        let tracks = [(Side::Thinking, &self.thinking), (Side::Content, &self.content)];
        let (side, track) = tracks
            .into_iter()
            .find(|(_, track)| track.verdicts.len() < track.pieces.len())
            .filter(|_| self.silence.is_none())?;
        let from = track.verdicts.len();
        let end = if self.by_token {
            track.pieces.len()
        } else {
            from + 1
        };
        Some((side, track.pieces[..end].to_vec(), from))
    }

    /// Takes the answer to [`Draft::question`].
    pub(crate) fn hear(&mut self, side: Side, verdicts: Vec<Scored<Moderation>>) {
        self.track(side).verdicts.extend(verdicts);
    }

    /// Takes note that the guard does not answer: it is asked no more, and nothing after this is judged.
    pub(crate) fn give_up(&mut self, cause: String) {
        self.silence = Some(cause);
    }

    /// Moves the last safe mark as far as the verdicts reach, and says what stands in the way: a verdict that the
    /// guardrail objects to.
    pub(crate) fn weigh(&mut self, guardrail: &Guardrail) -> Option<&Scored<Moderation>> {
        for track in [&mut self.thinking, &mut self.content] {
            if let Some(cause) = &self.silence {
                let cause = Scored::Unscorable(cause.clone());
                track.verdicts.resize(track.pieces.len(), cause);
            }
        }
        let tracks = [&self.thinking, &self.content];
        let fine = |track: &Track| {
            let objection = |scored: &Scored<Moderation>| guardrail.objects(scored);
            let first = track.verdicts.iter().position(objection);
            first.unwrap_or(track.verdicts.len())
        };
        let passed = tracks.map(fine);
        let is_safe = |mark: &Mark| mark.pieces[0] <= passed[0] && mark.pieces[1] <= passed[1];
        let safe = self.marks.iter().take_while(|mark| is_safe(mark)).count();
        if let Some(mark) = self.marks.drain(..safe).next_back() {
            self.safe = mark;
        }
        let mut tracks = tracks.into_iter().zip(passed);
        tracks.find_map(|(track, passed)| track.verdicts.get(passed))
    }

    /// What is to be delivered now: all, or what stands before the last safe mark. Tokens that added nothing wait for
    /// the next that does.
    pub(crate) fn deliver(&mut self, all: bool) -> (Vec<Delta>, Vec<Draw>) {
        let end = if all { self.writes } else { self.safe.writes };
        let shows = |written: &Written| written.number <= end && !written.deltas.is_empty();
        let last = self.held.iter().rposition(shows);
        self.take(last.map_or(0, |last| last + 1))
    }

    /// All that is still held.
    pub(crate) fn deliver_rest(&mut self) -> (Vec<Delta>, Vec<Draw>) {
        self.take(self.held.len())
    }

    fn take(&mut self, count: usize) -> (Vec<Delta>, Vec<Draw>) {
        let (mut deltas, mut draws) = (Vec::new(), Vec::new());
        for written in self.held.drain(..count) {
            for delta in written.deltas {
                match (deltas.last_mut(), delta) {
                    (Some(Delta::Thinking(text)), Delta::Thinking(more))
                    | (Some(Delta::Content(text)), Delta::Content(more)) => text.push_str(&more),
                    (_, delta) => deltas.push(delta),
                }
            }
            draws.extend(written.draw);
        }
        (deltas, draws)
    }

    /// Drops what is held back, and of the verdicts what comes after the one that was objected to.
    pub(crate) fn cut(&mut self, guardrail: &Guardrail) {
        self.held.clear();
        for track in [&mut self.thinking, &mut self.content] {
            let objection = track.verdicts.iter().position(|scored| guardrail.objects(scored));
            track.truncate(objection.map_or(track.verdicts.len(), |index| index + 1));
        }
    }

    /// The tokens before the last safe mark.
    pub(crate) fn kept(&self) -> &[u32] {
        &self.ids[..self.safe.tokens]
    }

    /// Takes back what stands after the last safe mark.
    pub(crate) fn rewind(&mut self) {
        let drawn = self.drawn();
        self.reply = self.safe.reply.clone();
        self.taken_back = (
            drawn.0 - self.reply.tokens(),
            drawn.1 - self.reply.thinking_tokens(),
        );
        self.ids.truncate(self.safe.tokens);
        self.writes = self.safe.writes;
        self.held.retain(|written| written.number <= self.safe.writes);
        self.thinking.truncate(self.safe.pieces[0]);
        self.content.truncate(self.safe.pieces[1]);
        self.marks.clear();
        self.sentence.clear();
        self.sentence_tokens = 0;
    }

    /// The verdicts on the thinking and on the content; null where there is nothing to judge.
    pub(crate) fn verdicts(&self, guardrail: &Guardrail) -> [Value; 2] {
        [self.thinking.json(guardrail), self.content.json(guardrail)]
    }
}

/// What a delta says, and where. A call is something that the model says, so the guard reads it too.
fn spoken(delta: &Delta) -> (Side, &str) {
    match delta {
        Delta::Thinking(text) => (Side::Thinking, text),
        Delta::Content(text) => (Side::Content, text),
        Delta::Call(call) => (Side::Content, &call.arguments),
    }
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Whether a sentence is over, whatever follows it.
fn is_over(sentence: &str) -> bool {
    let text = sentence.trim_end();
    let apart = text.len() < sentence.len();
    sentence.ends_with('\n') || text.ends_with(['。', '！', '？']) || (apart && is_whole(sentence))
}

/// Whether a sentence is over where blank space follows: a full stop after at least two words, for the number of a list
/// or an abbreviation at its head ends nothing.
fn is_whole(sentence: &str) -> bool {
    let text = sentence.trim();
    let bare = text.trim_end_matches(['"', '\'', ')', ']', '*', '_', '`', '”', '’', '»']);
    bare.ends_with(['.', '!', '?', '…']) && text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use judge::{Controversial, Conversation, Guard, Safety};

    use super::*;
    use crate::fixtures::tiny_tokenizer;
    use crate::guardrail::Action;
    use crate::reasoning::Parser;
    use crate::reply::Reading;

    /// Is not asked here.
    struct Nobody {
        reads_tokens: bool,
    }

    impl Guard for Nobody {
        fn moderate(&mut self, _: &[Conversation]) -> Vec<Scored<Moderation>> {
            Vec::new()
        }

        fn reads_tokens(&self) -> bool {
            self.reads_tokens
        }
    }

    fn guardrail(reads_tokens: bool) -> Guardrail {
        let guard = Box::new(Nobody { reads_tokens });
        Guardrail::new(guard, "nobody", Action::Block, Controversial::Unsafe).unwrap()
    }

    fn draft(guardrail: &Guardrail, tools: bool) -> Draft {
        let reading = Reading {
            parser: Parser::Qwen3,
            thinks: true,
            stop: vec![],
            tools,
        };
        Draft::new(Reply::new(tiny_tokenizer(), &reading), Some(guardrail))
    }

    /// Writes text, a token a byte.
    fn write(draft: &mut Draft, text: &str) {
        for id in tiny_tokenizer().encode_control(text).unwrap() {
            let draw = Draw {
                id,
                log_probability: 0.0,
                likeliest: vec![],
            };
            draft.push(draw, false).unwrap();
        }
    }

    fn moderation(score: f32) -> Scored<Moderation> {
        Scored::Scored(Moderation {
            safety: if score > 0.5 { Safety::Unsafe } else { Safety::Safe },
            categories: vec![],
            refusal: None,
            score,
        })
    }

    fn content(deltas: &[Delta]) -> String {
        let text = |delta: &Delta| match delta {
            Delta::Content(text) => text.clone(),
            _ => String::new(),
        };
        deltas.iter().map(text).collect()
    }

    #[test]
    fn sentences_end_where_a_reader_would_say() {
        let guardrail = guardrail(false);
        let long = "x".repeat(SENTENCE_TOKENS);
        let longer = format!("{long}yz");
        for (text, sentences) in [
            (
                "One is it. Two is 3.5 e.g. \"so.\" Three",
                vec!["One is it.", " Two is 3.5 e.g.", " \"so.\" Three"],
            ),
            ("1. Do it!\n\n2. Rest", vec!["1. Do it!", "\n\n2. Rest"]),
            ("他说。她说", vec!["他说。", "她说"]),
            ("\n a\nb", vec![" a", "\nb"]),
            (longer.as_str(), vec![long.as_str(), "yz"]),
            (" \n ", vec![]),
        ] {
            for tools in [false, true] {
                let mut draft = draft(&guardrail, tools);
                write(&mut draft, "<think>t</think>");
                write(&mut draft, text);
                draft.finish().unwrap();
                assert_eq!(draft.content.pieces, sentences, "{text:?} {tools}");
                assert_eq!(draft.thinking.pieces, ["t"]);
            }
        }
    }

    #[test]
    fn what_is_delivered_ends_where_the_guards_word_ends() {
        let guardrail = guardrail(false);
        let mut draft = draft(&guardrail, false);
        write(
            &mut draft,
            "<think>A thought.</think>One is fine. Two is fine. Three is",
        );
        assert!(draft.deliver(false).0.is_empty());
        let (side, pieces, from) = draft.question().unwrap();
        assert_eq!(
            (side, pieces, from),
            (Side::Thinking, vec!["A thought.".to_owned()], 0)
        );
        draft.hear(Side::Thinking, vec![moderation(0.1)]);
        assert!(draft.weigh(&guardrail).is_none());
        assert_eq!(draft.deliver(false).0, [Delta::Thinking("A thought.".into())]);

        for (from, score) in [0.2, 0.3].into_iter().enumerate() {
            let (side, pieces, judged) = draft.question().unwrap();
            assert_eq!((side, pieces.len(), judged), (Side::Content, from + 1, from));
            draft.hear(side, vec![moderation(score)]);
            assert!(draft.weigh(&guardrail).is_none());
        }
        assert!(draft.question().is_none());
        assert_eq!(content(&draft.deliver(false).0), "One is fine. Two is fine.");

        write(&mut draft, " bad. Four is not judged.");
        draft.finish().unwrap();
        let (side, pieces, from) = draft.question().unwrap();
        assert_eq!((&pieces[2..], from), (&[" Three is bad.".to_owned()][..], 2));
        draft.hear(side, vec![moderation(0.9)]);
        assert!(draft.weigh(&guardrail).is_some());
        assert_eq!(draft.deliver(false), (vec![], vec![]));

        let before = draft.drawn();
        let kept = draft.kept().to_vec();
        draft.rewind();
        assert_eq!(
            tiny_tokenizer().decode(&kept, true).unwrap(),
            "<think>A thought.</think>One is fine. Two is fine."
        );
        assert_eq!(draft.drawn(), before);
        assert!(draft.weigh(&guardrail).is_none());
        write(&mut draft, " Three is good.");
        draft.finish().unwrap();
        let (side, pieces, from) = draft.question().unwrap();
        assert_eq!(
            (pieces[2].as_str(), pieces.len(), from),
            (" Three is good.", 3, 2)
        );
        draft.hear(side, vec![moderation(0.4)]);
        assert!(draft.weigh(&guardrail).is_none());
        assert_eq!(content(&draft.deliver(false).0), " Three is good.");
        let [_, told] = draft.verdicts(&guardrail);
        let line = told["risk_line"].as_array().unwrap();
        assert_eq!((&line[2]["start"], &line[2]["end"]), (&json!(25), &json!(40)));
        assert_eq!((line.len(), &told["safety"]), (3, &json!("safe")));
    }

    #[test]
    fn a_guard_of_tokens_is_asked_at_each_and_a_cut_keeps_whole_sentences() {
        let guardrail = guardrail(true);
        let mut draft = draft(&guardrail, false);
        write(&mut draft, "</think>É la vie. No");
        let (side, pieces, _) = draft.question().unwrap();
        assert_eq!((side, pieces.len(), pieces[0].as_str()), (Side::Content, 12, "É"));
        let mut verdicts = vec![moderation(0.1); 12];
        verdicts[10] = moderation(0.8);
        draft.hear(side, verdicts);
        assert!(draft.weigh(&guardrail).is_some());
        assert_eq!(content(&draft.deliver(false).0), "É la vie.");
        draft.cut(&guardrail);
        let [thinking, told] = draft.verdicts(&guardrail);
        assert_eq!((thinking, &told["safety"]), (Value::Null, &json!("unsafe")));
        assert_eq!(told["risk_line"].as_array().unwrap().len(), 11);
        assert_eq!(told["risk_line"][10]["end"], 11);
    }

    #[test]
    fn a_guard_that_is_silent_is_asked_no_more() {
        let guardrail = guardrail(false);
        let mut draft = draft(&guardrail, false);
        write(&mut draft, "</think>One is fine. Two");
        draft.give_up("no word".into());
        assert!(draft.question().is_none());
        assert!(draft.weigh(&guardrail).unwrap().scored().is_none());
        draft.finish().unwrap();
        draft.weigh(&guardrail);
        let [_, told] = draft.verdicts(&guardrail);
        assert_eq!(told["unscorable"], "no word");
        assert_eq!(told["risk_line"].as_array().unwrap().len(), 2);
        assert_eq!(told["risk_line"][1]["risk"], Value::Null);
    }
}
