use super::*;

#[test]
fn every_index_is_visited_once_by_any_number_of_threads() {
    for threads in 1..6 {
        let team = Team::new(threads, Pinning::None);
        for count in [0usize, 1, 2, 7, 100] {
            let visits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            team.for_each(count, 3, &|_, index| {
                visits[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 1));
            team.for_each_in_shares(count, 3, &|_, index| {
                visits[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 2));
        }
    }
}

#[test]
fn a_share_whose_thread_does_not_come_is_done_by_the_others() {
    let team = Team::new(3, Pinning::None);
    let (busy, visits) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Whoever has the last share stays with its first index until all others are done.
    team.for_each_in_shares(300, 1, &|_, index| {
        if index == 200 {
            busy.store(true, Ordering::Relaxed);
            while visits.load(Ordering::Relaxed) < 299 {
                std::thread::yield_now();
            }
        }
        visits.fetch_add(1, Ordering::Relaxed);
    });
    assert!(busy.into_inner());
    assert_eq!(visits.into_inner(), 300);
}

#[test]
fn a_sleeping_team_wakes_for_the_next_part() {
    let team = Team::new(3, Pinning::Cores);
    for _ in 0..3 {
        while team.shared.sleepers.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        let count = AtomicUsize::new(0);
        team.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 3);
    }
}

#[test]
fn a_workers_panic_reaches_the_owner_and_the_team_goes_on() {
    let mut team = Team::new(4, Pinning::None);
    let result = catch_unwind(AssertUnwindSafe(|| team.run(&|i| assert!(i != 2, "two"))));
    assert!(result.is_err());
    team.resize(2);
    let count = AtomicUsize::new(0);
    team.run(&|_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(count.into_inner(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn bound_threads_run_where_they_were_told() {
    let cpus = usable_cpus();
    // In the other direction than the system's, and one fewer than there are threads.
    let wanted: Arc<[usize]> = cpus.iter().rev().copied().collect();
    let threads = wanted.len() + 1;
    std::thread::scope(|scope| {
        let owner = scope.spawn(|| {
            let team = Team::new(threads, Pinning::Cpus(Arc::clone(&wanted)));
            team.pin_owner();
            team.run(&|index| assert_eq!(usable_cpus(), [wanted[index % wanted.len()]]));
        });
        owner.join().unwrap();
    });
    assert_eq!(usable_cpus(), cpus, "other threads are left alone");
}

/// Where Linux keeps the calling thread's counts.
#[cfg(target_os = "linux")]
fn own_counts() -> std::path::PathBuf {
    let thread = std::fs::read_link("/proc/thread-self").expect("Linux tells");
    std::path::Path::new("/proc").join(thread).join("schedstat")
}

/// Processor time that a thread has used, and how often it was given a processor.
#[cfg(target_os = "linux")]
fn used(counts: &std::path::Path) -> (Duration, u64) {
    let counts = std::fs::read_to_string(counts).expect("the thread is there");
    let fields: Vec<u64> = counts.split_whitespace().flat_map(str::parse).collect();
    let [nanoseconds, _waited, times] = fields[..] else { panic!("three counts: {counts}") };
    (Duration::from_nanos(nanoseconds), times)
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_team_uses_no_processor() {
    let team = Team::new(4, Pinning::None);
    let threads = Mutex::new(Vec::new());
    team.run(&|_| threads.lock().unwrap().push(own_counts()));
    // Other tests' threads are none of the team's, and the owner is this one.
    let mut workers = threads.into_inner().unwrap();
    workers.retain(|counts| *counts != own_counts());
    assert_eq!(workers.len(), 3);
    let deadline = Instant::now() + Duration::from_secs(60);
    while team.shared.sleepers.load(Ordering::SeqCst) < 3 {
        assert!(Instant::now() < deadline, "the workers do not sleep");
        std::thread::yield_now();
    }
    // The window is this thread's own work, so that a busy machine makes it longer, not wrong.
    let of_workers = || -> Vec<_> { workers.iter().map(|counts| used(counts)).collect() };
    let (before, own) = (of_workers(), used(&own_counts()).0);
    let window = Duration::from_millis(300);
    while used(&own_counts()).0 - own < window {
        std::hint::spin_loop();
    }
    for ((time, times), (time_before, times_before)) in of_workers().into_iter().zip(before) {
        assert!(time_before > Duration::ZERO, "what a worker uses is not counted");
        // One that gives its processor away again and again uses little of a busy one.
        let (time, times) = (time - time_before, times - times_before);
        assert!(time < window / 60 && times < 10, "an idle worker ran {times} times, {time:?}");
    }
}

#[test]
fn parts_are_whole_where_all_waiting_is_by_sleeping() {
    let team = Team::new(4, Pinning::None);
    for _ in 0..50 {
        // As if somebody else had just taken a core.
        team.shared.crowded.store(CROWDED_WAITS, Ordering::SeqCst);
        let count = AtomicUsize::new(0);
        team.for_each(64, 1, &|thread, index| {
            // Uneven work, so that the owner waits for the others and they for it.
            for _ in 0..(thread * 5_000 + index * 50) {
                std::hint::spin_loop();
            }
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 64);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn two_teams_on_one_core_take_turns() {
    // One core for eight threads: what waits must let the others go on.
    let cpu = usable_cpus()[0];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let team = Team::new(4, Pinning::Cpus([cpu].into()));
                team.pin_owner();
                let parts = AtomicUsize::new(0);
                for _ in 0..2000 {
                    team.run(&|_| {
                        parts.fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert_eq!(parts.into_inner(), 8000);
            });
        }
    });
}

#[test]
fn a_worker_is_let_into_a_part_until_its_end_and_never_after() {
    let team = Team::new(1, Pinning::None);
    let shared = &team.shared;
    assert!(!shared.enter(0), "no part has begun");
    shared.open();
    let part = number(shared.door.0.load(Ordering::SeqCst));
    assert!(shared.enter(part) && shared.enter(part));
    assert!(!shared.enter(part + 1), "a part that has not begun");
    assert_eq!(shared.close(), 2);
    assert!(!shared.enter(part), "the end waits for two");
    shared.open();
    assert!(!shared.enter(part) && shared.enter(part + 1));
}

#[test]
fn a_workers_panic_in_shared_work_reaches_the_owner() {
    let team = Team::new(3, Pinning::None);
    let taken = AtomicBool::new(false);
    let result = catch_unwind(AssertUnwindSafe(|| {
        team.for_each(64, 1, &|thread, _| {
            if thread > 0 {
                taken.store(true, Ordering::SeqCst);
                panic!("a worker");
            }
            // The owner leaves work to the others until one has come.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !taken.load(Ordering::SeqCst) && Instant::now() < deadline {
                std::thread::yield_now();
            }
        });
    }));
    assert!(result.is_err() && taken.into_inner());
}
