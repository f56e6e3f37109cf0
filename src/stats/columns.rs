//! The columns of HAProxy 2.6's CSV, in its order, and what each shows of a row.
//! Shared by the CSV and JSON views. Never formats.

use super::counters::Counter as C;
use super::snapshot::{Kind, Row};
use super::standing::CheckStatus;
use crate::config::Mode;

/// Static columns of HAProxy 2.6.12, before the `-` that ends them.
#[rustfmt::skip]
pub(super) const COLUMNS: [&str; 103] = [
    "pxname", "svname", "qcur", "qmax", "scur", "smax", "slim", "stot", "bin", "bout", "dreq", "dresp", "ereq",
    "econ", "eresp", "wretr", "wredis", "status", "weight", "act", "bck", "chkfail", "chkdown", "lastchg",
    "downtime", "qlimit", "pid", "iid", "sid", "throttle", "lbtot", "tracked", "type", "rate", "rate_lim",
    "rate_max", "check_status", "check_code", "check_duration", "hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx",
    "hrsp_5xx", "hrsp_other", "hanafail", "req_rate", "req_rate_max", "req_tot", "cli_abrt", "srv_abrt", "comp_in",
    "comp_out", "comp_byp", "comp_rsp", "lastsess", "last_chk", "last_agt", "qtime", "ctime", "rtime", "ttime",
    "agent_status", "agent_code", "agent_duration", "check_desc", "agent_desc", "check_rise", "check_fall",
    "check_health", "agent_rise", "agent_fall", "agent_health", "addr", "cookie", "mode", "algo", "conn_rate",
    "conn_rate_max", "conn_tot", "intercepted", "dcon", "dses", "wrew", "connect", "reuse", "cache_lookups",
    "cache_hits", "srv_icur", "src_ilim", "qtime_max", "ctime_max", "rtime_max", "ttime_max", "eint",
    "idle_conn_cur", "safe_conn_cur", "used_conn_cur", "need_conn_est", "uweight", "agg_server_status",
    "agg_server_check_status", "agg_check_status",
];

/// One field of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// Not counted here; HAProxy leaves such fields empty too.
    Empty,
    Number(i64),
    Text(String),
}

/// What a column shows of a row.
pub(super) fn cell(row: &Row, column: &str) -> Cell {
    match column {
        "pxname" => Cell::Text(row.proxy.clone()),
        "svname" => Cell::Text(row.service.clone()),
        "status" => Cell::Text(row.status().into_owned()),
        "addr" => row.address.clone().map_or(Cell::Empty, Cell::Text),
        "mode" => Cell::Text(if row.mode == Mode::Tcp { "tcp" } else { "http" }.to_owned()),
        // As in HAProxy: where no request is understood none is counted.
        "req_tot" if row.mode == Mode::Tcp => Cell::Empty,
        _ if row.mode == Mode::Tcp && column.starts_with("hrsp_") => Cell::Empty,
        "algo" => row.balance.map_or(Cell::Empty, |balance| Cell::Text(balance.word().to_owned())),
        "check_status" | "check_desc" | "last_chk" if row.check.is_some() => check_text(row, column),
        _ => number(row, column).map_or(Cell::Empty, Cell::Number),
    }
}

/// What is said of the last check; before the first one there is nothing but that.
fn check_text(row: &Row, column: &str) -> Cell {
    let health = row.standing.health;
    let (short, long) = health.map(|health| health.status).unwrap_or_default().words();
    match column {
        "check_status" => Cell::Text(short.to_owned()),
        "check_desc" => Cell::Text(long.to_owned()),
        _ => health.and_then(|health| health.detail()).map_or(Cell::Empty, Cell::Text),
    }
}

fn check_number(row: &Row, column: &str) -> Option<u64> {
    let (rise, fall) = row.check?;
    let health = row.standing.health;
    let began = health.filter(|health| health.status != CheckStatus::Initializing);
    Some(match column {
        "chkfail" => row.count(C::ChecksFailed),
        "chkdown" => row.count(C::TimesDown),
        "downtime" => row.downtime(),
        "check_rise" => rise.into(),
        "check_fall" => fall.into(),
        "check_health" => health.map_or(rise, |health| health.level).into(),
        "check_duration" => began?.millis.into(),
        "check_code" => match began?.status {
            CheckStatus::L7Ok | CheckStatus::L7WrongStatus => began?.code.into(),
            _ => return None,
        },
        _ => return None,
    })
}

fn number(row: &Row, column: &str) -> Option<i64> {
    let value = match row.kind {
        Kind::Frontend => frontend(row, column),
        Kind::Backend => behind(row, column),
        Kind::Server => behind(row, column).or_else(|| check_number(row, column)),
    };
    value.or_else(|| common(row, column)).map(|value| i64::try_from(value).unwrap_or(i64::MAX)).or_else(|| {
        // HAProxy's way of saying never.
        (column == "lastsess" && row.kind != Kind::Frontend).then_some(-1)
    })
}

fn common(row: &Row, column: &str) -> Option<u64> {
    Some(match column {
        "scur" => row.sessions,
        "smax" => row.count(C::SessionsMax),
        "slim" => u64::from(row.limit?),
        "stot" => row.count(C::Sessions),
        "bin" => row.count(C::BytesIn),
        "bout" => row.count(C::BytesOut),
        "hrsp_1xx" => row.count(C::Status1xx),
        "hrsp_2xx" => row.count(C::Status2xx),
        "hrsp_3xx" => row.count(C::Status3xx),
        "hrsp_4xx" => row.count(C::Status4xx),
        "hrsp_5xx" => row.count(C::Status5xx),
        "hrsp_other" => row.count(C::StatusOther),
        // One process number for all: the counters are common to every worker.
        "pid" => 1,
        "iid" => row.proxy_id as u64,
        "sid" => row.server_id as u64,
        "type" => row.kind as u64,
        _ => return None,
    })
}

fn frontend(row: &Row, column: &str) -> Option<u64> {
    Some(match column {
        "dreq" => row.count(C::DeniedRequests),
        "ereq" => row.count(C::RequestErrors),
        "req_tot" => row.count(C::Requests),
        "conn_tot" => row.count(C::Sessions),
        _ => return None,
    })
}

fn behind(row: &Row, column: &str) -> Option<u64> {
    let backend = row.kind == Kind::Backend;
    Some(match column {
        "qcur" => row.queued,
        "econ" => row.count(C::ConnectErrors),
        "eresp" => row.count(C::ResponseErrors),
        "wretr" => row.count(C::Retries),
        "wredis" => row.count(C::Redispatches),
        "weight" => row.weight,
        "uweight" => row.user_weight,
        "act" => row.active as u64,
        "bck" => row.backup as u64,
        "lastchg" => row.last_change(),
        "lbtot" => row.count(C::Selected),
        "lastsess" => row.last_session?,
        "cli_abrt" => row.count(C::ClientAborts),
        "srv_abrt" => row.count(C::ServerAborts),
        "connect" => row.count(C::Connects),
        "reuse" => row.count(C::Reuses),
        "dreq" if backend => row.count(C::DeniedRequests),
        "chkdown" if backend => row.count(C::TimesDown),
        "downtime" if backend => row.downtime(),
        "req_tot" => row.count(C::Requests),
        _ => return None,
    })
}
