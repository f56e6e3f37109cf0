//! The statistics page as HTML: a table per frontend and backend, like HAProxy's.
//! Called by the statistics listener. Never loads anything from elsewhere, never trusts a name.

use std::fmt::Write as _;
use std::time::Duration;

use super::counters::Counter as C;
use super::ledger::{ReloadPath, ReloadResult};
use super::snapshot::{Kind, Row, Snapshot};
use super::standing::CheckStatus;

/// What the page says about the worker that shows it.
#[derive(Debug, Clone)]
pub struct About<'a> {
    /// Generation of the worker.
    pub generation: u64,
    /// Process id of the worker.
    pub pid: u32,
    /// URI prefix of the page, for links.
    pub uri: &'a str,
    /// The page reloads itself this often.
    pub refresh: Option<Duration>,
}

const STYLE: &str = "body{font:12px/1.35 Arial,Helvetica,sans-serif;margin:1em;color:#000;background:#fff}\
h1{font-size:1.5em;margin:0}h2{font-size:1.1em;margin:1.4em 0 .2em;background:#b00040;color:#ff4;\
display:inline-block;padding:.1em .8em}p{margin:.3em 0}a{color:#06c}.scroll{overflow-x:auto}\
table{border-collapse:collapse;white-space:nowrap}th,td{border:1px solid #999;padding:.1em .45em;\
text-align:right;font-variant-numeric:tabular-nums}th{background:#20d0d0;font-weight:600;text-align:center}\
td:first-child{text-align:left;font-weight:600}td.text{text-align:center}.frontend{background:#e8e8d0}\
.backend{background:#e8e8d0}.server{background:#e0e0e0}.up{background:#c0ffc0}.down{background:#ff9090}.kept{background:#c07820}";

/// Header groups with the columns below each.
const GROUPS: [(&str, &[&str]); 9] = [
    ("Queue", &["Cur"]),
    ("Sessions", &["Cur", "Max", "Limit", "Total", "LbTot", "Last"]),
    ("Connections", &["New", "Reused"]),
    ("Requests", &["Total"]),
    ("Bytes", &["In", "Out"]),
    ("Denied", &["Req"]),
    ("Errors", &["Req", "Conn", "Resp", "Client abort", "Server abort", "TLS"]),
    ("Warnings", &["Retr", "Redis"]),
    ("Responses", &["1xx", "2xx", "3xx", "4xx", "5xx", "Other"]),
];

/// Numbers in a row: the columns of all groups.
const NUMBERS: usize = 27;

/// Renders a snapshot as a page.
#[must_use]
pub fn html(snapshot: &Snapshot, about: &About<'_>) -> String {
    let mut out = String::with_capacity(16 * 1024);
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    if let Some(refresh) = about.refresh {
        // Writing to a string cannot fail, here and below.
        let _ = write!(out, "<meta http-equiv=\"refresh\" content=\"{}\">", refresh.as_secs().max(1));
    }
    let uri = escape(about.uri);
    let _ = write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width\"><title>Statistics Report for proxy</title>\
         <style>{STYLE}</style></head>\n<body><h1>proxy {version}</h1>\n<p>Statistics report: worker generation \
         <b>{generation}</b>, pid <b>{pid}</b>, counting since <b>{uptime}</b>, log lines dropped <b>{drops}</b>.\n<a href=\"{uri}\">Page</a> \
         <a href=\"{uri};norefresh\">without refresh</a> <a href=\"{uri};csv\">CSV</a> \
         <a href=\"{uri};json\">JSON</a> <a href=\"{uri};info\">Reloads</a></p>\n{reloads}",
        version = env!("CARGO_PKG_VERSION"),
        generation = about.generation,
        pid = about.pid,
        uptime = span(snapshot.uptime),
        drops = snapshot.log_lines_dropped,
        reloads = reloads(snapshot),
    );
    for rows in snapshot.rows.chunk_by(|one, other| one.proxy_id == other.proxy_id) {
        table(&mut out, rows);
    }
    out.push_str("</body></html>\n");
    out
}

/// What became of reloads, which configuration serves, and who still drains.
fn reloads(snapshot: &Snapshot) -> String {
    let count = |result| {
        let asked = [ReloadPath::Handover, ReloadPath::Rebind, ReloadPath::Upgrade];
        asked.into_iter().map(|path| snapshot.reloads.count(path, result)).sum::<u64>()
    };
    let workers = snapshot.lives.iter().map(|life| {
        let state = if life.draining { "draining" } else { "serving" };
        format!("{} {state} ({} connections)", life.generation, life.connections)
    });
    format!(
        "<p>Reloads: <b>{}</b> applied, <b>{}</b> rejected, <b>{}</b> rolled back; workers replaced after a crash: <b>{}</b>. \
         Configuration {:.12}. Generations: {}.</p>\n",
        count(ReloadResult::Applied),
        count(ReloadResult::Rejected),
        count(ReloadResult::RolledBack),
        snapshot.reloads.count(ReloadPath::Respawn, ReloadResult::Applied),
        snapshot.reloads.config_sha256(),
        workers.collect::<Vec<_>>().join(", "),
    )
}

fn table(out: &mut String, rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    let _ = write!(
        out,
        "<h2>{}</h2>\n<div class=\"scroll\"><table><thead><tr><th rowspan=\"2\"></th>",
        escape(&first.proxy)
    );
    for (group, columns) in GROUPS {
        let _ = write!(out, "<th colspan=\"{}\">{group}</th>", columns.len());
    }
    out.push_str("<th colspan=\"5\">Server</th></tr>\n<tr>");
    for column in GROUPS
        .iter()
        .flat_map(|(_, columns)| columns.iter())
        .chain(&["Status", "LastChk", "LastChg", "Weight", "Address"])
    {
        let _ = write!(out, "<th>{column}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>");
    for row in rows {
        line(out, row);
    }
    out.push_str("</tbody></table></div>\n");
}

fn line(out: &mut String, row: &Row) {
    let title = match row.kind {
        Kind::Frontend => "Frontend".to_owned(),
        Kind::Backend => "Backend".to_owned(),
        Kind::Server => escape(&row.service),
    };
    let class = match row.kind {
        Kind::Frontend => "frontend",
        Kind::Backend => "backend",
        Kind::Server => "server",
    };
    let _ = write!(out, "<tr class=\"{class}\"><td>{title}</td>");
    for value in numbers(row) {
        let _ = match value {
            Some(number) => write!(out, "<td>{}</td>", grouped(number)),
            None => write!(out, "<td></td>"),
        };
    }
    let behind = row.kind != Kind::Frontend;
    let status = row.status();
    let state = match &*status {
        word if word.starts_with("DOWN") => "down",
        word if word.starts_with("MAINT") || word.starts_with("DRAIN") => "kept",
        _ => "up",
    };
    let _ = writeln!(
        out,
        "<td class=\"text {state}\">{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
        status,
        check(row),
        if behind { span(Duration::from_secs(row.last_change())) } else { span(row.uptime) },
        if behind { row.weight.to_string() } else { String::new() },
        escape(row.address.as_deref().unwrap_or_default()),
    );
}

/// The last check as HAProxy's page shows it: `L7OK/200 in 3ms`.
fn check(row: &Row) -> String {
    let health = if row.check.is_some() { row.standing.health } else { None };
    health.map_or_else(String::new, |health| match health.status {
        CheckStatus::Initializing => health.status.words().0.to_owned(),
        CheckStatus::L7Ok | CheckStatus::L7WrongStatus => {
            format!("{}/{} in {}ms", health.status.words().0, health.code, health.millis)
        }
        status => format!("{} in {}ms", status.words().0, health.millis),
    })
}

/// The numbers of a row in the order of [`GROUPS`]; `None` where a kind of row has none.
fn numbers(row: &Row) -> [Option<u64>; NUMBERS] {
    let front = |counter| (row.kind == Kind::Frontend).then(|| row.count(counter));
    let behind = |counter| (row.kind != Kind::Frontend).then(|| row.count(counter));
    let both = |counter| Some(row.count(counter));
    [
        (row.kind != Kind::Frontend).then_some(row.queued),
        Some(row.sessions),
        both(C::SessionsMax),
        row.limit.map(u64::from),
        both(C::Sessions),
        behind(C::Selected),
        row.last_session,
        behind(C::Connects),
        behind(C::Reuses),
        both(C::Requests),
        both(C::BytesIn),
        both(C::BytesOut),
        if row.kind == Kind::Server { None } else { both(C::DeniedRequests) },
        front(C::RequestErrors),
        behind(C::ConnectErrors),
        behind(C::ResponseErrors),
        behind(C::ClientAborts),
        behind(C::ServerAborts),
        front(C::HandshakeErrors),
        behind(C::Retries),
        behind(C::Redispatches),
        both(C::Status1xx),
        both(C::Status2xx),
        both(C::Status3xx),
        both(C::Status4xx),
        both(C::Status5xx),
        both(C::StatusOther),
    ]
}

/// `12 345 678`, with spaces that do not break.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{202F}');
        }
        text.push(digit);
    }
    text
}

/// `3d4h`, `4h5m`, `5m6s`, `7s`: the two greatest units, as HAProxy shows times.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Text that can stand in an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(character),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_the_page_has_a_number() {
        let columns: usize = GROUPS.iter().map(|(_, columns)| columns.len()).sum();
        assert_eq!(columns, NUMBERS);
    }

    #[test]
    fn spans_and_numbers_read_well() {
        let cases = [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_660, "1h1m"), (90_000, "1d1h")];
        for (seconds, expected) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
        for (number, expected) in
            [(0, "0"), (999, "999"), (1_000, "1\u{202F}000"), (1_234_567, "1\u{202F}234\u{202F}567")]
        {
            assert_eq!(grouped(number), expected);
        }
    }
}
