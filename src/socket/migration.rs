//! Whether the kernel saves the clients that wait in the queue of a listening socket when that is closed.
//! Asked by `master` before a rebind. Never changes the setting.

/// Since Linux 5.14; off unless somebody has switched it on.
const SETTING: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// What a rebind may cost here, in words; none where the kernel migrates queues.
#[must_use]
pub fn cost_of_rebinding() -> Option<String> {
    let setting = std::fs::read_to_string(SETTING);
    if setting.as_ref().is_ok_and(|value| value.trim() == "1") {
        return None;
    }
    let why = match setting {
        Ok(_) => "net.ipv4.tcp_migrate_req is 0",
        Err(_) => "net.ipv4.tcp_migrate_req (Linux 5.14) is not known to be 1",
    };
    Some(format!(
        "warning: rebind: clients that come in the instant in which the old sockets close may be reset, because {why}; \
         a hand-over (reload-socket) resets nobody"
    ))
}
