//! Reading the whole log against its hashes and signatures.

use rusqlite::Connection;
use serde::Serialize;

use super::merkle::{Hash, Peaks, Proof, leaf_hash};
use super::{
    AuditError, Checkpoint, from_sql, leaf_bytes, load_peaks, read_checkpoint, signature_holds,
};

/// What [`verify`] found to be true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Entries in the log, each as it was written.
    pub entries: u64,
    /// Root of the tree over them, hex.
    pub root: String,
    /// Entries that the device's newest signature covers.
    pub signed_entries: u64,
    /// Entries that the control plane's newest co-signature covers.
    pub cosigned_entries: u64,
}

impl Verified {
    /// Whether entry `seq` is in the log, and under the device's signature.
    #[must_use]
    pub fn covers(&self, seq: u64) -> bool {
        (1..=self.signed_entries).contains(&seq)
    }
}

/// Reads every entry, recomputes every hash and checks every signature. `device_key` is the
/// device's public audit key and `control_plane_key` the co-signing one, where there is one
/// (Ed25519, 32 bytes each).
///
/// # Errors
/// The first thing that is not as it was written, as an [`AuditError`].
pub fn verify(
    connection: &Connection,
    device: &str,
    device_key: &[u8],
    control_plane_key: Option<&[u8]>,
) -> Result<Verified, AuditError> {
    // One snapshot for entries, head and checkpoints, while others go on writing.
    let tx = connection.unchecked_transaction()?;
    let checkpoints = checkpoints(&tx)?;
    let mut peaks = Peaks::default();
    let mut next = checkpoints.iter().peekable();
    let mut verified =
        Verified { entries: 0, root: String::new(), signed_entries: 0, cosigned_entries: 0 };
    let mut check = |peaks: &Peaks| -> Result<(), AuditError> {
        while let Some(point) = next.next_if(|point| point.entries == peaks.len()) {
            check_point(point, &peaks.root(), device, device_key, control_plane_key)?;
            verified.signed_entries = point.entries;
            if point.cosignature.is_some() && control_plane_key.is_some() {
                verified.cosigned_entries = point.entries;
            }
        }
        Ok(())
    };
    check(&peaks)?;
    for_each_leaf(&tx, |leaf| {
        peaks.push(leaf);
        check(&peaks)
    })?;
    if let Some(point) = checkpoints.last()
        && point.entries > peaks.len()
    {
        return Err(AuditError::CutOff { signed: point.entries, found: peaks.len() });
    }
    if load_peaks(&tx)? != peaks {
        return Err(AuditError::Tree { entries: peaks.len() });
    }
    verified.entries = peaks.len();
    verified.root = hex::encode(peaks.root());
    Ok(verified)
}

fn checkpoints(connection: &Connection) -> Result<Vec<Checkpoint>, AuditError> {
    let mut statement = connection.prepare(
        "SELECT entries, root, signature, cosignature FROM audit_checkpoint ORDER BY entries",
    )?;
    let rows = statement.query_map([], read_checkpoint)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn check_point(
    point: &Checkpoint,
    root: &Hash,
    device: &str,
    device_key: &[u8],
    control_plane_key: Option<&[u8]>,
) -> Result<(), AuditError> {
    let entries = point.entries;
    if point.root != *root {
        return Err(AuditError::Checkpoint { entries });
    }
    if !signature_holds(device_key, device, entries, root, &point.signature) {
        return Err(AuditError::Signature { who: "device", entries });
    }
    if let (Some(key), Some(cosignature)) = (control_plane_key, &point.cosignature)
        && !signature_holds(key, device, entries, root, cosignature)
    {
        return Err(AuditError::Signature { who: "control plane", entries });
    }
    Ok(())
}

/// Recomputes each entry's leaf from its columns, in order.
fn for_each_leaf(
    connection: &Connection,
    mut each: impl FnMut(Hash) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    let mut statement = connection.prepare(
        "SELECT seq, at_s, actor, action, resource, outcome, opened, detail, leaf
         FROM audit_entry ORDER BY seq",
    )?;
    let mut rows = statement.query([])?;
    let mut expected = 1;
    while let Some(row) = rows.next()? {
        let seq = from_sql(row.get(0)?);
        if seq != expected {
            return Err(AuditError::Gap { expected, found: seq });
        }
        let texts: [String; 4] = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?];
        let texts = [&texts[0], &texts[1], &texts[2], &texts[3]].map(String::as_str);
        let opened: Option<i64> = row.get(6)?;
        let detail: String = row.get(7)?;
        let bytes = leaf_bytes(seq, row.get(1)?, texts, opened.map(from_sql), &detail);
        let leaf = leaf_hash(&bytes);
        if row.get::<_, Vec<u8>>(8)? != leaf {
            return Err(AuditError::Changed { seq });
        }
        each(leaf)?;
        expected += 1;
    }
    Ok(())
}

/// The proof that entry `seq` is part of the log as it is now.
///
/// # Errors
/// [`AuditError::NotFound`], or what is wrong with the log.
pub fn prove(connection: &Connection, seq: u64) -> Result<Proof, AuditError> {
    let mut leaves = Vec::new();
    for_each_leaf(connection, |leaf| {
        leaves.push(leaf);
        Ok(())
    })?;
    let index = usize::try_from(seq.wrapping_sub(1)).unwrap_or(usize::MAX);
    Proof::make(&leaves, index).ok_or(AuditError::NotFound { seq, entries: leaves.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use fulmar_store::Store;
    use serde_json::json;

    struct Bench {
        _dir: tempfile::TempDir,
        store: Store,
        key: AuditKey,
        control: AuditKey,
    }

    fn event(i: usize) -> Event<'static> {
        Event {
            at_s: 1_800_000_000 + i as i64,
            actor: "pump-app",
            action: "model.run",
            resource: "plant/pumps:1",
            outcome: Outcome::Completed,
            opened: None,
            detail: json!({ "i": i }),
        }
    }

    impl Bench {
        fn new(entries: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("a.db"), &[&SCHEMA]).unwrap();
            let (key, control) = (AuditKey::generate().unwrap(), AuditKey::generate().unwrap());
            let bench = Self { _dir: dir, store, key, control };
            for i in 0..entries {
                bench.write(move |tx| append(tx, &event(i)).map(|_| ()));
            }
            bench
        }

        fn write(
            &self,
            work: impl FnOnce(&Transaction<'_>) -> Result<(), AuditError> + Send + 'static,
        ) {
            self.store.write_blocking(work).unwrap();
        }

        fn sign(&self) -> Checkpoint {
            let key = AuditKey::from_pkcs8(self.key.to_pkcs8()).unwrap();
            self.store.write_blocking(move |tx| checkpoint(tx, &key, "dev-1", 5)).unwrap()
        }

        fn cosign(&self) {
            let point = self.sign();
            let signature = self.control.sign("dev-1", point.entries, &point.root);
            self.write(move |tx| cosign(tx, point.entries, &signature));
        }

        /// As somebody with the file in an editor would.
        fn tamper(&self, sql: &str) {
            let sql = format!(
                "DROP TRIGGER audit_entry_stays; DROP TRIGGER audit_entry_is_never_changed; {sql}"
            );
            self.write(move |tx| Ok(tx.execute_batch(&sql)?));
        }

        fn verify(&self) -> Result<Verified, AuditError> {
            let control = self.control.public().to_vec();
            self.store.read_blocking(|c| verify(c, "dev-1", self.key.public(), Some(&control)))
        }
    }

    #[test]
    fn an_untouched_log_verifies_and_says_how_far_it_is_signed() {
        let b = Bench::new(3);
        b.cosign();
        b.write(|tx| append(tx, &event(3)).map(|_| ()));
        b.sign();
        b.write(|tx| append(tx, &event(4)).map(|_| ()));
        let found = b.verify().unwrap();
        assert_eq!((found.entries, found.signed_entries, found.cosigned_entries), (5, 4, 3));
        assert_eq!([0, 1, 4, 5].map(|seq| found.covers(seq)), [false, true, true, false]);
    }

    #[test]
    fn an_empty_log_verifies() {
        assert_eq!(Bench::new(0).verify().unwrap().entries, 0);
    }

    #[test]
    fn entries_cannot_be_changed_or_removed_by_mistake() {
        let b = Bench::new(2);
        for sql in ["DELETE FROM audit_entry", "UPDATE audit_entry SET actor = 'x'"] {
            let done: Result<(), AuditError> =
                b.store.write_blocking(move |tx| Ok(tx.execute_batch(sql)?));
            assert!(done.is_err(), "{sql}");
        }
    }

    #[test]
    fn every_changed_column_is_noticed() {
        for set in [
            "at_s = 1",
            "actor = 'eve'",
            "action = 'model.list'",
            "resource = 'plant/pumps:2'",
            "outcome = 'denied'",
            "opened = 1",
            "detail = '{}'",
            "leaf = zeroblob(32)",
        ] {
            let b = Bench::new(5);
            b.tamper(&format!("UPDATE audit_entry SET {set} WHERE seq = 3"));
            assert!(matches!(b.verify(), Err(AuditError::Changed { seq: 3 })), "{set}");
        }
    }

    #[test]
    fn a_removed_entry_is_noticed_wherever_it_was() {
        let b = Bench::new(5);
        b.tamper("DELETE FROM audit_entry WHERE seq = 3");
        assert!(matches!(b.verify(), Err(AuditError::Gap { expected: 3, found: 4 })));
        let b = Bench::new(5);
        b.tamper("DELETE FROM audit_entry WHERE seq = 5");
        assert!(matches!(b.verify(), Err(AuditError::Tree { entries: 4 })));
    }

    #[test]
    fn a_log_cut_off_with_its_head_is_noticed_by_the_signature() {
        let b = Bench::new(5);
        b.sign();
        let shorter = Bench::new(4);
        let peaks = shorter.store.read_blocking(load_peaks).unwrap();
        b.tamper(&format!(
            "DELETE FROM audit_entry WHERE seq = 5;
             UPDATE audit_head SET entries = 4, peaks = x'{}'",
            hex::encode(peaks.to_bytes())
        ));
        assert!(matches!(b.verify(), Err(AuditError::CutOff { signed: 5, found: 4 })));
    }

    #[test]
    fn a_log_rewritten_as_a_whole_is_noticed_by_its_signatures() {
        let b = Bench::new(2);
        b.cosign();
        // The whole content replaced by another, consistent log, even signed by the device's key.
        b.tamper("DELETE FROM audit_entry; DELETE FROM audit_head");
        b.write(|tx| append(tx, &Event { actor: "eve", ..event(0) }).map(|_| ()));
        b.write(|tx| append(tx, &event(1)).map(|_| ()));
        assert!(matches!(b.verify(), Err(AuditError::Checkpoint { entries: 2 })));
        let (entries, root) = b.store.read_blocking(head).unwrap();
        let signature = hex::encode(b.key.sign("dev-1", entries, &root));
        let root = hex::encode(root);
        b.tamper_again(&format!(
            "UPDATE audit_checkpoint SET root = x'{root}', signature = x'{signature}'"
        ));
        assert!(matches!(
            b.verify(),
            Err(AuditError::Signature { who: "control plane", entries: 2 })
        ));
    }

    impl Bench {
        fn tamper_again(&self, sql: &str) {
            let sql = sql.to_owned();
            self.write(move |tx| Ok(tx.execute_batch(&sql)?));
        }
    }

    #[test]
    fn an_entry_is_not_there_when_what_it_records_failed() {
        let b = Bench::new(1);
        let failed: Result<(), AuditError> = b.store.write_blocking(|tx| {
            append(tx, &event(1))?;
            Err(AuditError::Key)
        });
        assert!(failed.is_err());
        assert_eq!(b.verify().unwrap().entries, 1);
    }

    #[test]
    fn a_proof_shows_one_entry_without_the_others() {
        let b = Bench::new(7);
        let (_, root) = b.store.read_blocking(head).unwrap();
        let proof = b.store.read_blocking(|c| prove(c, 4)).unwrap();
        assert!(proof.holds(&root));
        assert!(matches!(
            b.store.read_blocking(|c| prove(c, 8)),
            Err(AuditError::NotFound { seq: 8, entries: 7 })
        ));
        assert!(b.store.read_blocking(|c| prove(c, 0)).is_err());
    }

    #[test]
    fn what_began_and_never_ended_is_found() {
        let b = Bench::new(0);
        let started = Event { outcome: Outcome::Started, ..event(0) };
        for event in [started.clone(), started, Event { opened: Some(1), ..event(1) }] {
            b.write(move |tx| append(tx, &event).map(|_| ()));
        }
        let open = b.store.read_blocking(unfinished).unwrap();
        assert_eq!(open.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn pages_go_forward_and_backward() {
        let b = Bench::new(5);
        let page = |after, len_max, newest_first| {
            let page = Page { after, len_max, newest_first };
            let entries = b.store.read_blocking(|c| list(c, page)).unwrap();
            entries.into_iter().map(|e| e.seq).collect::<Vec<_>>()
        };
        assert_eq!(page(0, 2, false), [1, 2]);
        assert_eq!(page(2, 9, false), [3, 4, 5]);
        assert_eq!(page(0, 2, true), [5, 4]);
    }
}
