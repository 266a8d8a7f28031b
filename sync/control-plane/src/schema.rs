//! The control plane's tables. Times are seconds since 1970, ids are text, hashes are hex.

use fulmar_store::Schema;

/// Operators, devices, releases, deployments, reports. The audit log's tables come with
/// [`fulmar_policy`].
pub(crate) const SCHEMA: Schema =
    Schema { name: "control", steps: &[STEP_1, STEP_TRUST, STEP_GROUPS] };

/// All tables of `control.db`.
pub(crate) const ALL: [&Schema; 3] =
    [&fulmar_policy::audit::SCHEMA, &fulmar_registry::trust::SCHEMA, &SCHEMA];

const STEP_1: &str = "
CREATE TABLE operator (
    name TEXT PRIMARY KEY,
    password_hash TEXT NOT NULL,
    roles TEXT NOT NULL,
    created_s INTEGER NOT NULL
) STRICT;

-- Sign-ins: of browsers (kind 'session') and of programs (kind 'token').
CREATE TABLE session (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('session', 'token')),
    secret_sha256 TEXT NOT NULL UNIQUE,
    subject TEXT NOT NULL,
    roles TEXT NOT NULL,
    created_s INTEGER NOT NULL,
    used_s INTEGER NOT NULL,
    idle_s INTEGER,
    expires_s INTEGER NOT NULL
) STRICT;

CREATE TABLE join_token (
    id TEXT PRIMARY KEY,
    secret_sha256 TEXT NOT NULL UNIQUE,
    note TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_s INTEGER NOT NULL,
    expires_s INTEGER NOT NULL,
    used_s INTEGER,
    used_by TEXT,
    revoked_s INTEGER
) STRICT;

CREATE TABLE device (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    certificate_sha256 TEXT NOT NULL UNIQUE,
    certificate_expires_s INTEGER NOT NULL,
    -- The certificate before the last renewal: good until the new one is used.
    certificate_before_sha256 TEXT,
    audit_key TEXT NOT NULL,
    facts TEXT NOT NULL,
    enrolled_s INTEGER NOT NULL,
    removed_s INTEGER,
    seen_s INTEGER,
    address TEXT,
    boot_id TEXT,
    -- What the director wants: raised with every change of the desired state. The first, of a new
    -- device, is to hold nothing.
    generation INTEGER NOT NULL DEFAULT 1,
    generation_seen INTEGER NOT NULL DEFAULT 0,
    generation_applied INTEGER NOT NULL DEFAULT 0,
    disk_free_bytes INTEGER,
    clock_s INTEGER,
    link TEXT,
    acked_through INTEGER NOT NULL DEFAULT 0,
    sync_requested_id TEXT
) STRICT;

CREATE TABLE device_model (
    device_id TEXT NOT NULL REFERENCES device (id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    state TEXT NOT NULL,
    bytes_done INTEGER NOT NULL,
    bytes_total INTEGER NOT NULL,
    reason TEXT,
    updated_s INTEGER NOT NULL,
    PRIMARY KEY (device_id, name, digest)
) STRICT, WITHOUT ROWID;

-- The metadata of the owner's registry repository, byte for byte, by file name.
CREATE TABLE registry_metadata (
    file TEXT PRIMARY KEY,
    bytes BLOB NOT NULL,
    -- When a newer file took its place; devices that refresh just then may still want it.
    superseded_s INTEGER
) STRICT;

CREATE TABLE release (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    digest TEXT NOT NULL,
    length INTEGER NOT NULL,
    number INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    published_s INTEGER NOT NULL,
    published_by TEXT NOT NULL,
    -- Not named by the registry's newest targets any more.
    withdrawn_s INTEGER,
    UNIQUE (model, digest)
) STRICT;

-- Which blobs a release is made of, its manifest among them.
CREATE TABLE release_blob (
    digest TEXT NOT NULL,
    release_id INTEGER NOT NULL REFERENCES release (id),
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (digest, release_id)
) STRICT, WITHOUT ROWID;

-- Targets of the registry that are no models (a policy, say): every device may fetch them.
CREATE TABLE common_blob (
    path TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE deployment (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    digest TEXT NOT NULL,
    number INTEGER NOT NULL,
    -- 1: to serve; 0: only to be there.
    active INTEGER NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('all', 'devices')),
    created_s INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    stopped_s INTEGER,
    stopped_by TEXT
) STRICT;

CREATE TABLE deployment_device (
    deployment_id INTEGER NOT NULL REFERENCES deployment (id),
    device_id TEXT NOT NULL REFERENCES device (id),
    generation INTEGER NOT NULL,
    -- What was wanted before, as JSON: what stopping goes back to.
    before TEXT,
    done_s INTEGER,
    -- How it ended, when it did not get done: 'stopped', 'superseded', 'removed'.
    ended TEXT,
    PRIMARY KEY (deployment_id, device_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX deployment_device_by_device ON deployment_device (device_id, deployment_id);

-- The desired state of each device.
CREATE TABLE desired (
    device_id TEXT NOT NULL REFERENCES device (id),
    model TEXT NOT NULL,
    digest TEXT NOT NULL,
    length INTEGER NOT NULL,
    number INTEGER NOT NULL,
    active INTEGER NOT NULL,
    deployment_id INTEGER NOT NULL REFERENCES deployment (id),
    PRIMARY KEY (device_id, model)
) STRICT, WITHOUT ROWID;

-- The desired state as signed metadata, minted when it is asked for.
CREATE TABLE director_metadata (
    device_id TEXT PRIMARY KEY REFERENCES device (id),
    generation INTEGER NOT NULL,
    serial INTEGER NOT NULL,
    -- From when on it is minted anew although nothing changed.
    renew_s INTEGER NOT NULL,
    targets BLOB NOT NULL,
    snapshot BLOB NOT NULL,
    timestamp BLOB NOT NULL
) STRICT;

CREATE TABLE director_root (
    version INTEGER PRIMARY KEY,
    expires_s INTEGER NOT NULL,
    bytes BLOB NOT NULL
) STRICT;

CREATE TABLE report (
    device_id TEXT NOT NULL REFERENCES device (id),
    seq INTEGER NOT NULL,
    at_s INTEGER NOT NULL,
    received_s INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (device_id, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX report_by_kind ON report (device_id, kind, seq);
CREATE INDEX report_by_time ON report (received_s);

-- States of devices' audit logs, signed by the device and co-signed here.
CREATE TABLE checkpoint (
    device_id TEXT NOT NULL REFERENCES device (id),
    entries INTEGER NOT NULL,
    root TEXT NOT NULL,
    signature TEXT NOT NULL,
    cosignature TEXT NOT NULL,
    received_s INTEGER NOT NULL,
    PRIMARY KEY (device_id, entries)
) STRICT, WITHOUT ROWID;

CREATE TABLE setting (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
";

/// Devices' audit logs as this control plane has seen them grow; files of reports.
const STEP_TRUST: &str = "
CREATE TABLE audit_witness (
    device_id TEXT PRIMARY KEY REFERENCES device (id),
    -- Entries whose head was found to be right, and the peaks of the tree over them.
    entries INTEGER NOT NULL,
    peaks BLOB NOT NULL,
    fault TEXT
) STRICT, WITHOUT ROWID;
-- Leaves after those.
CREATE TABLE audit_leaf (
    device_id TEXT NOT NULL REFERENCES device (id),
    seq INTEGER NOT NULL,
    leaf BLOB NOT NULL,
    PRIMARY KEY (device_id, seq)
) STRICT, WITHOUT ROWID;
ALTER TABLE device ADD COLUMN report_serial INTEGER NOT NULL DEFAULT 0;
";

/// Groups of devices. A group is there while a device is in it.
const STEP_GROUPS: &str = "
CREATE TABLE device_group (
    name TEXT NOT NULL,
    device_id TEXT NOT NULL REFERENCES device (id),
    added_s INTEGER NOT NULL,
    added_by TEXT NOT NULL,
    PRIMARY KEY (name, device_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_group_by_device ON device_group (device_id, name);

-- Groups that a deployment was made for: whoever joins one later gets it too. Such a deployment's
-- scope is 'devices'; these rows say that there is more to it.
CREATE TABLE deployment_group (
    deployment_id INTEGER NOT NULL REFERENCES deployment (id),
    name TEXT NOT NULL,
    PRIMARY KEY (deployment_id, name)
) STRICT, WITHOUT ROWID;

-- Groups that a device belongs to as soon as it joins with this token, separated by spaces.
ALTER TABLE join_token ADD COLUMN groups TEXT NOT NULL DEFAULT '';
";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_database_from_before_groups_keeps_its_devices_and_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        static BEFORE: Schema = Schema { name: "control", steps: &[STEP_1, STEP_TRUST] };
        let old = fulmar_store::Store::open(&path, &[&BEFORE]).unwrap();
        let made = "
            INSERT INTO device (id, name, certificate_sha256, certificate_expires_s, audit_key,
                facts, enrolled_s) VALUES ('d-1', 'pump', 'ab', 1, 'cd', '{\"arch\":\"\",\"os\":\"\",\"agent_version\":\"\",\"cpus\":1,\"memory_bytes\":1}', 1);
            INSERT INTO join_token VALUES ('j-1', 'ef', 'note', 'admin', 1, 2, NULL, NULL, NULL);";
        old.write_blocking(|tx| Ok::<_, fulmar_store::StoreError>(tx.execute_batch(made)?))
            .unwrap();
        drop(old);
        let store = fulmar_store::Store::open(&path, &ALL).unwrap();
        let devices = store.read_blocking(|c| crate::fleet::list(c, "", None, 10)).unwrap();
        assert_eq!((devices.len(), devices[0].groups.len()), (1, 0));
        let tokens = store.read_blocking(|c| crate::join::list(c, 10)).unwrap();
        assert!(tokens[0].groups.is_empty());
        assert_eq!(store.read_blocking(crate::groups::list).unwrap(), []);
    }
}
