//! `proxy`: an HTTP reverse proxy and load balancer whose reloads no client ever sees.
//!
//! Layers, imports only downward (`tests/architecture.rs` holds it):
//! main → cli → { master, worker } → proxy → upstream → http → tls → stats → handoff → socket → logging → config

pub mod cli;
pub mod config;
pub mod handoff;
pub mod http;
pub mod logging;
pub mod master;
pub mod proxy;
pub mod socket;
pub mod stats;
pub mod tls;
pub mod upstream;
pub mod worker;
