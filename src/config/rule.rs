//! `[[frontend.NAME.rule]]`: what is done with a request before it goes anywhere.
//! Read by `frontend`, applied by `proxy`. Never sees a request.

use serde::{Deserialize, Serialize};

use super::section::Section;

/// One `[[frontend.NAME.rule]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rule {
    /// Applies when the connection is TLS (`Some(true)`), plain (`Some(false)`), always (`None`).
    pub tls: Option<bool>,
    /// What is done.
    pub action: Action,
}

/// What a rule does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Answer with a redirect and end the request.
    Redirect(Redirect),
}

/// A redirect; exactly one of the parts it may replace is usual.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Redirect {
    /// New scheme, host and path kept.
    pub scheme: Option<String>,
    /// New host, path kept.
    pub host: Option<String>,
    /// Prefix put before the path.
    pub prefix: Option<String>,
    /// Whole new location.
    pub location: Option<String>,
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
}

pub(super) fn rule(mut section: Section<'_>) -> Option<Rule> {
    let tls = section.table("when").and_then(|mut when| {
        let tls = when.boolean("tls");
        when.finish();
        tls
    });
    let redirect = section.table("redirect").and_then(redirect);
    if section.value("redirect").is_none() {
        section.report.error(section.span.clone(), "a rule without an action", "add redirect = { scheme = \"https\" }");
    }
    section.finish();
    redirect.map(|redirect| Rule { tls, action: Action::Redirect(redirect) })
}

fn redirect(mut section: Section<'_>) -> Option<Redirect> {
    let codes = [301, 302, 303, 307, 308];
    let code = section.integer("code", 301..=308).unwrap_or(302);
    let code = u16::try_from(code).ok().filter(|code| codes.contains(code));
    if code.is_none() {
        section.report.error(section.place("code"), "this code is no redirect", "use 301, 302, 303, 307 or 308");
    }
    let redirect = Redirect {
        scheme: section.choice("scheme", &[("http", "http"), ("https", "https")]).map(str::to_owned),
        host: section.string("host"),
        prefix: section.string("prefix"),
        location: section.string("location"),
        code: code.unwrap_or(302),
    };
    let given = [&redirect.scheme, &redirect.host, &redirect.prefix, &redirect.location];
    if let Some(prefix) = &redirect.prefix
        && (prefix.is_empty() || prefix.ends_with('/'))
    {
        // With a client's path of `//elsewhere` it would lead to another host.
        section.report.error(
            section.place("prefix"),
            "a prefix ends before the slash of the path",
            "write \"https://name\"",
        );
    }
    let unsafe_text =
        given.iter().filter_map(|part| part.as_ref()).any(|part| !part.chars().all(|c| c.is_ascii_graphic()));
    if unsafe_text {
        section.report.error(section.span.clone(), "a redirect holds only visible ASCII", "percent-encode the rest");
    }
    if ["scheme", "host", "prefix", "location"].into_iter().all(|key| section.value(key).is_none()) {
        section.report.error(
            section.span.clone(),
            "a redirect without a destination",
            "add scheme, host, prefix or location",
        );
    }
    if (redirect.location.is_some() || redirect.prefix.is_some())
        && given.iter().filter(|part| part.is_some()).count() > 1
    {
        section.report.error(section.span.clone(), "`location` and `prefix` stand alone", "leave the others out");
    }
    section.finish();
    Some(redirect)
}
