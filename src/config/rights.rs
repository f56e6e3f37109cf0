//! What this process may do with its rights: be another user, belong to a group, confine itself to a folder.
//! Asked where the configuration names a user, a group or a folder. Never changes any of it.

use nix::unistd::{Gid, Group, User, getegid, geteuid, getgroups};
use rustix::thread::{CapabilitySet, capabilities};

/// Whether it may become any user.
#[must_use]
pub fn may_become_anybody() -> bool {
    geteuid().is_root()
}

/// Whether it may confine its workers to a folder: as root, or as a user with CAP_SYS_CHROOT (the systemd unit's).
#[must_use]
pub fn may_confine() -> bool {
    geteuid().is_root() || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_CHROOT))
}

/// Whether it may give what it owns to this group.
#[must_use]
pub fn may_give_to(group: Gid) -> bool {
    geteuid().is_root() || belongs_to(group)
}

/// Whether it is this user already.
pub(super) fn is_user(name: &str) -> bool {
    matches!(User::from_name(name), Ok(Some(user)) if user.uid == geteuid())
}

/// Whether it is in this group already.
pub(super) fn is_in_group(name: &str) -> bool {
    matches!(Group::from_name(name), Ok(Some(group)) if belongs_to(group.gid))
}

fn belongs_to(group: Gid) -> bool {
    getegid() == group || getgroups().is_ok_and(|groups| groups.contains(&group))
}
