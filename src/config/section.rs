//! A table of the configuration, read key by key; what was not asked for is an unknown key.
//! Used by every section. Never stops at a problem: it is reported and the value is absent.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Report, suggestion};
use super::units;

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) span: Range<usize>,
}

/// One table and the keys known in it.
pub(super) struct Section<'a> {
    table: &'a DeTable<'a>,
    /// Where the table is.
    pub(super) span: Range<usize>,
    /// What it is called in messages.
    pub(super) name: String,
    known: Vec<&'static str>,
    pub(super) report: &'a Report<'a>,
}

type Value<'a> = &'a Spanned<DeValue<'a>>;

impl<'a> Section<'a> {
    pub(super) fn new(
        table: &'a DeTable<'a>,
        span: Range<usize>,
        name: impl Into<String>,
        report: &'a Report<'a>,
    ) -> Self {
        Self { table, span, name: name.into(), known: Vec::new(), report }
    }

    /// The raw value of a key, which is known from now on.
    pub(super) fn value(&mut self, key: &'static str) -> Option<Value<'a>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    /// Where a key's value is, or else the table.
    pub(super) fn place(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(self.span.clone(), Spanned::span)
    }

    /// These keys have no meaning here.
    pub(super) fn refuse(&mut self, keys: &[&'static str], because: &str, instead: &str) {
        for key in keys {
            if self.value(key).is_some() {
                self.report.error(self.place(key), format!("`{key}` {because}"), instead);
            }
        }
    }

    /// Every key nobody asked for is an error.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let word = key.get_ref().as_ref();
            if !self.known.contains(&word) {
                let label = suggestion(word, &self.known);
                self.report.error(key.span(), format!("unknown key `{word}` in {}", self.name), label);
            }
        }
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<Text> {
        let value = self.value(key)?;
        as_text(value, self.report, "a string")
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<String> {
        self.text(key).map(|text| text.text)
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            wrong_type(self.report, value, "true or false");
        }
        found
    }

    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.value(key)?;
        let Some(number) = value.get_ref().as_integer() else {
            wrong_type(self.report, value, "a whole number");
            return None;
        };
        let parsed = u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| range.contains(number));
        if parsed.is_none() {
            let label = format!("write {} to {}", range.start(), range.end());
            self.report.error(value.span(), format!("`{key}` is out of range"), label);
        }
        parsed
    }

    pub(super) fn duration(&mut self, key: &'static str) -> Option<Duration> {
        let time = self.with_unit(key, units::duration, |number| format!("write \"{number}s\" or \"{number}ms\""))?;
        if time.is_zero() {
            // Elsewhere it means "for ever", here it would mean "at once": nobody shall have to know.
            self.report.error(
                self.place(key),
                format!("`{key}` is no time at all"),
                "write how long, for example \"30s\"",
            );
        }
        Some(time)
    }

    pub(super) fn size(&mut self, key: &'static str) -> Option<usize> {
        self.with_unit(key, units::size, |number| format!("write \"{number}B\" or \"{number}KiB\""))
    }

    fn with_unit<T>(
        &mut self,
        key: &'static str,
        parse: fn(&str) -> Result<T, String>,
        fix: fn(&str) -> String,
    ) -> Option<T> {
        let value = self.value(key)?;
        if let Some(number) = value.get_ref().as_integer() {
            self.report.error(value.span(), format!("`{key}` has no unit"), fix(number.as_str()));
            return None;
        }
        let text = as_text(value, self.report, "a string with a unit")?;
        parse(&text.text)
            .map_err(|problem| self.report.error(text.span, format!("`{key}` is not understood"), problem))
            .ok()
    }

    /// One word of a list.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text.text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let label = suggestion(&text.text, &known);
            self.report.error(text.span, format!("`{key}` cannot be `{}`", text.text), label);
        }
        found
    }

    /// A string or a list of strings.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<Text> {
        let report = self.report;
        self.items(key).into_iter().filter_map(|item| as_text(item, report, "a string")).collect()
    }

    /// A value or a list of values.
    pub(super) fn items(&mut self, key: &'static str) -> Vec<Value<'a>> {
        match self.value(key) {
            None => Vec::new(),
            Some(value) => match value.get_ref() {
                DeValue::Array(items) => items.iter().collect(),
                _ => vec![value],
            },
        }
    }

    pub(super) fn table(&mut self, key: &'static str) -> Option<Section<'a>> {
        let value = self.value(key)?;
        let name = if self.name.is_empty() { format!("[{key}]") } else { format!("{}.{key}", self.name) };
        as_section(value, name, self.report)
    }

    /// A list of tables (`[[name]]`).
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let report = self.report;
        let name = if self.name.is_empty() { format!("[[{key}]]") } else { format!("{}.{key}", self.name) };
        self.items(key).into_iter().filter_map(|item| as_section(item, name.clone(), report)).collect()
    }

    /// All entries of a table whose keys are names the operator chose.
    pub(super) fn entries(&self) -> Vec<(Text, Value<'a>)> {
        let mut all: Vec<_> = self
            .table
            .iter()
            .map(|(key, value)| (Text { text: key.get_ref().to_string(), span: key.span() }, value))
            .collect();
        all.sort_by_key(|(name, _)| name.span.start);
        all
    }

    /// `[kind.NAME]` tables in file order.
    pub(super) fn named(&mut self, kind: &'static str) -> Vec<(Text, Section<'a>)> {
        let report = self.report;
        let Some(section) = self.table(kind) else { return Vec::new() };
        section
            .entries()
            .into_iter()
            .filter_map(|(name, value)| {
                let title = format!("[{kind}.{}]", name.text);
                Some((name, as_section(value, title, report)?))
            })
            .collect()
    }
}

pub(super) fn as_section<'a>(value: Value<'a>, name: String, report: &'a Report<'a>) -> Option<Section<'a>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(Section::new(table, value.span(), name, report)),
        _ => {
            wrong_type(report, value, "a table");
            None
        }
    }
}

/// A string with `${NAME}` and `${NAME:-default}` replaced from the environment.
pub(super) fn as_text(value: Value<'_>, report: &Report<'_>, wanted: &str) -> Option<Text> {
    let Some(raw) = value.get_ref().as_str() else {
        wrong_type(report, value, wanted);
        return None;
    };
    match expand(raw, |name| std::env::var(name).ok()) {
        Ok(text) => Some(Text { text, span: value.span() }),
        Err(Unfilled::Open) => {
            report.error(value.span(), "`${` without `}`", "write ${NAME}, or ${NAME:-default}");
            None
        }
        Err(Unfilled::Unset(name)) => {
            let problem = format!("environment variable `{name}` is not set");
            report.outside(value.span(), problem, "set it, or write ${NAME:-default}");
            None
        }
    }
}

/// Why a string cannot be filled.
#[derive(Debug, PartialEq, Eq)]
enum Unfilled {
    Open,
    Unset(String),
}

fn expand(raw: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, Unfilled> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once("${") {
        text.push_str(before);
        let (inside, behind) = after.split_once('}').ok_or(Unfilled::Open)?;
        let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
        match (lookup(name), default) {
            (Some(value), _) => text.push_str(&value),
            (None, Some(default)) => text.push_str(default),
            (None, None) => return Err(Unfilled::Unset(name.to_owned())),
        }
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

fn wrong_type(report: &Report<'_>, value: Value<'_>, wanted: &str) {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    report.error(value.span(), format!("{found} where {wanted} belongs"), format!("write {wanted}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_fills_strings() {
        let lookup = |name: &str| (name == "PORT").then(|| String::from("8080"));
        assert_eq!(expand("*:${PORT}", lookup), Ok(String::from("*:8080")));
        assert_eq!(expand("${HOST:-[::]}:${PORT}", lookup), Ok(String::from("[::]:8080")));
        assert_eq!(expand("${HOST}", lookup), Err(Unfilled::Unset(String::from("HOST"))));
        assert_eq!(expand("${PORT", lookup), Err(Unfilled::Open));
    }
}
