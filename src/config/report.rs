//! Problems of a configuration, collected and shown all at once.
//! Filled by every section. Never stops at the first.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Everything found in one file.
pub(super) struct Report<'a> {
    path: &'a Path,
    source: &'a str,
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    /// Something is wrong with what the text names, not with the text.
    outside: Cell<bool>,
}

struct Problem {
    message: String,
    label: String,
    span: Range<usize>,
    second: Option<(Range<usize>, String)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(path: &'a Path, source: &'a str) -> Self {
        Self { path, source, errors: RefCell::default(), warnings: RefCell::default(), outside: Cell::default() }
    }

    /// Reports what is wrong at `span`; `label` says what would be right.
    pub(super) fn error(&self, span: Range<usize>, message: impl Into<String>, label: impl Into<String>) {
        let problem = Problem { message: message.into(), label: label.into(), span, second: None };
        self.errors.borrow_mut().push(problem);
    }

    /// Reports a file or a name at `span` that cannot be used now: the same text may be right another time.
    pub(super) fn outside(&self, span: Range<usize>, message: impl Into<String>, label: impl Into<String>) {
        self.outside.set(true);
        self.error(span, message, label);
    }

    /// Whether the errors are the text's alone, so that it is refused at any time.
    pub(super) fn lasting(&self) -> bool {
        !self.outside.get()
    }

    /// Reports something that contradicts another place of the file.
    pub(super) fn conflict(&self, span: Range<usize>, message: impl Into<String>, first: Range<usize>) {
        let second = Some((first, String::from("first here")));
        let problem = Problem { message: message.into(), label: String::from("and again here"), span, second };
        self.errors.borrow_mut().push(problem);
    }

    /// Tells something worth knowing that does not stop anything.
    pub(super) fn warning(&self, span: Range<usize>, message: impl Into<String>, label: impl Into<String>) {
        let problem = Problem { message: message.into(), label: label.into(), span, second: None };
        self.warnings.borrow_mut().push(problem);
    }

    /// `file:line:column` of a place.
    pub(super) fn place(&self, offset: usize) -> String {
        let before = &self.source[..offset.min(self.source.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("{}:{line}:{column}", self.path.display())
    }

    /// A file named in the configuration; relative names start at the configuration's folder.
    pub(super) fn resolve(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or_else(|| Path::new(".")).join(name)
    }

    /// All errors in the order of the file, rendered, and their number.
    pub(super) fn errors(&self) -> (String, usize) {
        let mut problems = self.errors.borrow_mut();
        problems.sort_by_key(|problem| problem.span.start);
        let rendered: Vec<_> = problems.iter().map(|problem| self.render(Level::ERROR, problem)).collect();
        (rendered.join("\n\n"), rendered.len())
    }

    /// All errors, one line each and without the source, which may hold secrets.
    pub(super) fn brief(&self) -> String {
        let lines: Vec<_> = self.errors.borrow().iter().map(|problem| self.line(problem)).collect();
        lines.join("\n")
    }

    /// All warnings, one line each and without the source, which may hold secrets.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().iter().map(|problem| format!("warning: {}", self.line(problem))).collect()
    }

    /// One line, whatever it quotes: control characters are written as in a string of Rust.
    fn line(&self, problem: &Problem) -> String {
        let line = format!("{}: {}; {}", self.place(problem.span.start), problem.message, problem.label);
        line.chars().fold(String::with_capacity(line.len()), |mut shown, character| {
            if character.is_control() {
                shown.extend(character.escape_debug());
            } else {
                shown.push(character);
            }
            shown
        })
    }

    fn render(&self, level: Level<'static>, problem: &Problem) -> String {
        let clamp = |span: &Range<usize>| {
            let end = span.end.min(self.source.len());
            span.start.min(end)..end
        };
        let mut snippet = Snippet::source(self.source)
            .path(self.path.display().to_string())
            .annotation(AnnotationKind::Primary.span(clamp(&problem.span)).label(problem.label.clone()));
        if let Some((span, label)) = &problem.second {
            snippet = snippet.annotation(AnnotationKind::Context.span(clamp(span)).label(label.clone()));
        }
        let group = level.primary_title(problem.message.clone()).element(snippet);
        Renderer::plain().render(&[group])
    }
}

/// The word of `known` nearest to `word`, if one is near enough to be meant.
#[must_use]
pub fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean …?" or the whole list.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_only_when_it_is_near() {
        assert_eq!(nearest("maxcon", ["maxconn", "chroot"]), Some("maxconn"));
        assert_eq!(nearest("zzz", ["maxconn", "chroot"]), None);
    }

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let report = Report::new(Path::new("f.toml"), "ä = 1\nb = 2\n");
        assert_eq!(report.place(0), "f.toml:1:1");
        assert_eq!(report.place("ä = 1\nb".len()), "f.toml:2:2");
    }

    #[test]
    fn a_line_of_the_log_stays_one_whatever_it_quotes() {
        let report = Report::new(Path::new("f.toml"), "\"a\\nb\" = 1\n");
        report.error(0..6, "unknown key `a\nb\u{1b}[31m`", "known here: ä");
        assert_eq!(report.brief(), "f.toml:1:1: unknown key `a\\nb\\u{1b}[31m`; known here: ä");
    }
}
