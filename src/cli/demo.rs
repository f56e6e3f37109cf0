//! `proxy demo`: the whole product in one terminal, without files or root.

use clap::Args;

use super::run;
use super::showcase::Showcase;
use crate::master::{self, Options};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {}

pub(super) fn run(_args: &DemoArgs) -> u8 {
    let showcase = match Showcase::new() {
        Ok(showcase) => showcase,
        Err(error) => {
            eprintln!("proxy: {error}");
            return super::REFUSED;
        }
    };
    let options = Options { config: showcase.config(), ..Options::default() };
    run::ended(master::run(options, || print!("{}", invitation(&showcase))))
}

fn invitation(showcase: &Showcase) -> String {
    let program = std::env::current_exe().map_or_else(|_| String::from("proxy"), |path| path.display().to_string());
    let origins: Vec<_> = showcase.origins.iter().map(ToString::to_string).collect();
    let (https, http, stats) = (showcase.https, showcase.http, showcase.stats);
    let socket = showcase.socket();
    let socket = socket.display();
    format!(
        "
proxy serves {origins} behind https://{https}/. In another terminal try:

  curl -k https://{https}/            three servers in turn
  curl -i http://{http}/             redirected to HTTPS
  curl -u admin:demo 'http://{stats}/admin?stats;csv'   or in a browser, without ;csv
  {program} status -s {socket}
  {program} reload-socket -s {socket}     as often as you like, under any load
  {program} measure                      what clients notice of restart, reload, reload-socket

The configuration is {config}: edit it, then reload-socket. Ctrl-C ends everything.

",
        origins = origins.join(", "),
        config = showcase.config().display(),
    )
}
