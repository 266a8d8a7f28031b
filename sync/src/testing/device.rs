//! A device of the tests: its database, its registry and what it syncs with.

use super::*;

/// A device of tests: a state directory.
pub(crate) struct Device {
    pub(crate) dir: PathBuf,
    pub(crate) registry: Registry,
    pub(crate) clock: Arc<SignedClock>,
}

impl Device {
    pub(crate) fn open(dir: &Path) -> Self {
        let schemas = [SCHEMAS[0], SCHEMAS[1], &state::SCHEMA, &audit::SCHEMA];
        let store = Store::open(&dir.join("state.db"), &schemas).unwrap();
        let registry = Registry::open(dir, store, &fulmar_registry::Options::default()).unwrap();
        Self { dir: dir.to_owned(), registry, clock: Arc::new(SignedClock::new(0)) }
    }

    pub(crate) fn enrollment(&self, token: &str) -> Enrollment {
        Enrollment {
            token: token.to_owned(),
            name: "one".to_owned(),
            audit_key: "00".repeat(32),
            facts: DeviceFacts::default(),
            identity_path: self.dir.join("identity.json"),
            actor: "local".to_owned(),
            registry_root: None,
        }
    }

    pub(crate) async fn enroll(&self, plane: &ControlPlane) -> Identity {
        let enrollment = self.enrollment(&plane.token());
        enroll(self.registry.store(), Arc::clone(&self.clock), &enrollment).await.unwrap()
    }

    /// The link of an enrolled device; `health` is what every model shows.
    pub(crate) fn sync(&self, health: Checked) -> Sync {
        self.sync_with(health, |_| {})
    }

    /// [`Device::sync`] with other settings.
    pub(crate) fn sync_with(&self, health: Checked, set: impl FnOnce(&mut Options)) -> Sync {
        let identity_path = self.dir.join("identity.json");
        let hooks = Hooks {
            check: Box::new(move |_| {
                let health = health.clone();
                Box::pin(async move { health })
            }),
            changed: Box::new(|| Box::pin(async {})),
            damaged: Box::new(|_| Box::pin(async {})),
            running: Box::new(std::collections::BTreeSet::new),
        };
        let mut options = Options::default();
        options.schedule.interval_ms_min = 5;
        options.schedule.retry_ms_min = 5;
        options.schedule.retry_ms_max = 50;
        set(&mut options);
        Sync::new(Deps {
            identity: Identity::load(&identity_path).unwrap().unwrap(),
            identity_path,
            registry: self.registry.clone(),
            clock: Arc::clone(&self.clock),
            facts: DeviceFacts::default(),
            hooks,
            options,
        })
        .unwrap()
    }
}
