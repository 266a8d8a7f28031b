//! The threads that compute. One thread, the owner of the [`Team`], runs a step and hands each of
//! its parallel parts to all of them; the parts are microseconds long, so the others wait by
//! spinning, give their core away when it lasts, and sleep when no step comes.
//!
//! Where others want the same cores, all waiting is by sleeping soon: a thread that gives its core
//! away while somebody else is ready has to wait for that one's whole time slice, milliseconds for a
//! wait of microseconds, while one that sleeps is run again as soon as it is woken.
//!
//! Most parts are work that whoever comes takes from ([`Team::for_each`]): when nothing is left to take,
//! the owner closes the part, and waits only for those who entered it. So a worker whose core is busy
//! with another program delays nobody, as long as it holds no piece of the work.
//!
//! Invariants: a part's closure is called only between the start and the end of [`Team::run`], so it may
//! borrow from the owner; a panic in any thread becomes a panic of the owner.

use crate::disjoint::Disjoint;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

/// Spins before a waiting thread starts giving its core away, some tens of microseconds.
const SPINS: usize = 1500;
/// How long a thread without work stays awake. Longer than the pause between two steps.
const AWAKE: Duration = Duration::from_millis(3);
/// A core that was given away for longer is wanted by somebody else.
const CROWDED_AFTER: Duration = Duration::from_micros(100);
/// Waits by sleeping after a core was found to be wanted; then it is tried again.
const CROWDED_WAITS: usize = 1000;

/// Threads that have a share of their own in [`Team::for_each_in_shares`]; others help.
const SHARES_MAX: usize = 64;

/// A part of a step as the threads see it.
type Part = *const (dyn Fn(usize) + Sync);

/// A value on cache lines of its own.
#[repr(align(128))]
struct Apart<T>(T);

/// Where the current part's door keeps what: the number of workers that entered, whether it is
/// closed to more, and the part's number.
const ENTERED: u64 = (1 << 16) - 1;
const CLOSED: u64 = 1 << 16;
const NUMBER_SHIFT: u32 = 17;

struct Shared {
    /// The current part's door; a new number tells the workers to start.
    door: Apart<AtomicU64>,
    /// Workers that entered the current part and have finished it.
    finished: Apart<AtomicUsize>,
    /// The next chunk of a part that nobody has taken.
    next: Apart<AtomicUsize>,
    /// The same for each thread's share of a part that is handed out in shares.
    shares: [Apart<AtomicUsize>; SHARES_MAX],
    /// Written by the owner before it opens the door, read by workers that entered.
    closure: UnsafeCell<Option<Part>>,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    /// How many of the next waits are by sleeping.
    crowded: AtomicUsize,
    /// Whether the owner sleeps until a part is finished.
    owner_sleeps: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Wakes the owner.
    done: Condvar,
}

// SAFETY: `closure` is the only field that is not `Sync`; the owner writes it only while no part
// runs, and workers read it only after they entered the part (acquire after release), which the
// owner does not end before they finished.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `closure` is to a `Sync` closure and used only while it is borrowed.
unsafe impl Send for Shared {}

/// Whether each thread stays on one core.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Pinning {
    /// The system places threads.
    #[default]
    None,
    /// Thread `i` runs on the `i`-th core that the process may use (Linux).
    Cores,
    /// Thread `i` runs on the `i`-th of these processors, from the first again where there are more
    /// threads (Linux). A processor that the process may not use leaves the thread where it is.
    Cpus(Arc<[usize]>),
}

/// Threads that compute together; see the module.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    pinning: Pinning,
    /// The thread that was bound as the owner. Not `Sync`: only one thread at a time may run parts.
    owner: Cell<Option<ThreadId>>,
}

impl Team {
    /// A team of `threads` (at least 1), the calling thread among them.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    pub fn new(threads: usize, pinning: Pinning) -> Self {
        let mut team = Self {
            shared: Arc::new(Shared {
                door: Apart(AtomicU64::new(CLOSED)),
                finished: Apart(AtomicUsize::new(0)),
                next: Apart(AtomicUsize::new(0)),
                shares: [const { Apart(AtomicUsize::new(0)) }; SHARES_MAX],
                closure: UnsafeCell::new(None),
                stop: AtomicBool::new(false),
                sleepers: AtomicUsize::new(0),
                crowded: AtomicUsize::new(0),
                owner_sleeps: AtomicBool::new(false),
                panic: Mutex::new(None),
                sleep: Mutex::new(()),
                wake: Condvar::new(),
                done: Condvar::new(),
            }),
            workers: Vec::new(),
            pinning,
            owner: Cell::new(None),
        };
        team.start(threads);
        team
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Changes how many threads compute. Fewer than asked for are started when the system has no
    /// more.
    pub fn resize(&mut self, threads: usize) {
        if threads != self.threads() {
            self.stop();
            self.start(threads);
        }
    }

    /// Binds the calling thread as the team's first, if threads are bound at all. To be called by
    /// the thread that will run parts from now on, and keeps computing: it stays bound.
    pub fn pin_owner(&self) {
        if self.pinning == Pinning::None {
            return;
        }
        let caller = std::thread::current().id();
        if self.owner.replace(Some(caller)) != Some(caller) {
            pin(0, &self.pinning);
        }
    }

    fn start(&mut self, threads: usize) {
        self.shared.stop.store(false, Ordering::SeqCst);
        let seen = number(self.shared.door.0.load(Ordering::SeqCst));
        for index in 1..threads {
            let shared = self.shared.clone();
            let pinning = self.pinning.clone();
            let worker = std::thread::Builder::new()
                .name(format!("fulmar-compute-{index}"))
                .spawn(move || work(&shared, index, &pinning, seen));
            match worker {
                Ok(worker) => self.workers.push(worker),
                Err(_) => break,
            }
        }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.open();
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // A worker never ends by a panic: it hands panics to the owner.
            let _ = worker.join();
        }
    }

    /// Calls `part` with each thread's number, on all threads at once, and returns when all are
    /// done.
    ///
    /// # Panics
    /// When `part` panics in any thread.
    pub fn run(&self, part: &(dyn Fn(usize) + Sync)) {
        self.run_with(part, true);
    }

    /// Calls `part` on the owner and, `all` or as many as come before the owner is done, on workers.
    fn run_with(&self, part: &(dyn Fn(usize) + Sync), all: bool) {
        if self.workers.is_empty() {
            self.shared.next.0.store(0, Ordering::Relaxed);
            return part(0);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is extended; `Rest` below waits until no worker uses it.
        let closure =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Part>(part) };
        // SAFETY: no part runs now, so no worker reads the cell.
        unsafe { *shared.closure.get() = Some(closure) };
        shared.next.0.store(0, Ordering::Relaxed);
        shared.finished.0.store(0, Ordering::Relaxed);
        shared.open();
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            shared.wake_sleepers();
        }
        let rest = Rest { shared, expected: all.then_some(self.workers.len()) };
        part(0);
        drop(rest);
        let panicked = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }

    /// Calls `f(thread, index)` once for each index below `count`; threads take `chunk` of them at
    /// a time as they become free.
    ///
    /// # Panics
    /// When `f` panics.
    pub fn for_each(&self, count: usize, chunk: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        let chunk = chunk.max(1);
        if count <= chunk || self.workers.is_empty() {
            return (0..count).for_each(|index| f(0, index));
        }
        let next = &self.shared.next.0;
        let take = |thread: usize| {
            loop {
                let start = next.fetch_add(chunk, Ordering::Relaxed);
                if start >= count {
                    break;
                }
                (start..count.min(start + chunk)).for_each(|index| f(thread, index));
            }
        };
        self.run_with(&take, false);
    }
}

impl Team {
    /// As [`Team::for_each`], but each thread has a share of neighbouring indices, takes `chunk` of
    /// them at a time in ascending order, and then helps the others with theirs. For work that reads
    /// memory from one end to the other: what a thread has fetched ahead is what it does next.
    ///
    /// # Panics
    /// When `f` panics.
    pub fn for_each_in_shares(
        &self,
        count: usize,
        chunk: usize,
        f: &(dyn Fn(usize, usize) + Sync),
    ) {
        let chunk = chunk.max(1);
        if count <= chunk || self.workers.is_empty() {
            return (0..count).for_each(|index| f(0, index));
        }
        let threads = self.threads().min(SHARES_MAX);
        let shares = &self.shared.shares[..threads];
        let start = |share: usize| count * share / threads;
        for (index, next) in shares.iter().enumerate() {
            next.0.store(start(index), Ordering::Relaxed);
        }
        let take = |thread: usize| {
            for share in (0..threads).map(|other| (thread + other) % threads) {
                let end = start(share + 1);
                loop {
                    let from = shares[share].0.fetch_add(chunk, Ordering::Relaxed);
                    if from >= end {
                        break;
                    }
                    (from..end.min(from + chunk)).for_each(|index| f(thread, index));
                }
            }
        };
        self.run_with(&take, false);
    }

    /// Calls `f(index, item)` once for each item, all threads at once.
    ///
    /// # Panics
    /// When `f` panics.
    pub fn for_each_mut<T: Send>(&self, items: &mut [T], f: &(dyn Fn(usize, &mut T) + Sync)) {
        let count = items.len();
        let items = Disjoint::new(items);
        self.for_each(count, 1, &|_, index| {
            // SAFETY: each index is visited once.
            f(index, &mut unsafe { items.slice(index, 1) }[0]);
        });
    }

    /// Calls `f(index, row)` once for each row of `width` values, all threads at once.
    ///
    /// # Panics
    /// When `width` is 0 or `f` panics.
    pub fn for_rows(&self, rows: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let count = rows.len() / width;
        let rows = Disjoint::new(rows);
        self.for_each(count, 2, &|_, index| {
            // SAFETY: each index is visited once.
            f(index, unsafe { rows.slice(index * width, width) });
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({} threads)", self.threads())
    }
}

/// Closes the part and waits for its workers, also when the owner's own share panics.
struct Rest<'a> {
    shared: &'a Shared,
    /// How many workers have to have come, where that matters.
    expected: Option<usize>,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        let mut spins = 0;
        let workers = self.expected.unwrap_or_else(|| shared.close());
        while shared.finished.0.load(Ordering::Acquire) < workers {
            match pause(&mut spins, shared) {
                Pause::Spun | Pause::Yielded => {}
                Pause::Crowded => shared.sleep_until_finished(workers),
            }
        }
    }
}

/// The number of the part that a door leads to.
fn number(door: u64) -> u64 {
    door >> NUMBER_SHIFT
}

impl Shared {
    /// Opens the door of the next part.
    fn open(&self) {
        let last = number(self.door.0.load(Ordering::Relaxed));
        // A swap, because the owner looks for sleepers next, and that look must come behind: qemu
        // lets AArch64's loads pass the plain stores before them, and a wake-up would be lost.
        self.door.0.swap((last + 1) << NUMBER_SHIFT, Ordering::SeqCst);
    }

    /// Closes the part to workers that have not come yet, and says how many have.
    fn close(&self) -> usize {
        (self.door.0.fetch_or(CLOSED, Ordering::SeqCst) & ENTERED) as usize
    }

    /// Whether the calling worker is in time for part `part`; if so, its end waits for the worker.
    fn enter(&self, part: u64) -> bool {
        let enter = |door| (number(door) == part && door & CLOSED == 0).then_some(door + 1);
        self.door.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter).is_ok()
    }

    fn wake_sleepers(&self) {
        drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }

    /// Waits for a part after number `seen` and returns its number.
    fn wait(&self, seen: u64) -> u64 {
        let mut spins = 0;
        let mut since = None;
        loop {
            let part = number(self.door.0.load(Ordering::Acquire));
            if part != seen {
                return part;
            }
            match pause(&mut spins, self) {
                Pause::Spun => {}
                Pause::Yielded => {
                    if since.get_or_insert_with(Instant::now).elapsed() > AWAKE {
                        self.sleep_until_after(seen);
                    }
                }
                Pause::Crowded => self.sleep_until_after(seen),
            }
        }
    }

    fn sleep_until_finished(&self, workers: usize) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        // A swap, as in `open`: the count is looked at behind it.
        self.owner_sleeps.swap(true, Ordering::SeqCst);
        while self.finished.0.load(Ordering::SeqCst) < workers {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.owner_sleeps.store(false, Ordering::SeqCst);
    }

    /// Counts the calling worker as finished.
    fn finish(&self) {
        // In one order with the owner's announcement and its look at the count: either it sees
        // this worker, or this worker sees it asleep.
        self.finished.0.fetch_add(1, Ordering::SeqCst);
        if self.owner_sleeps.load(Ordering::SeqCst) {
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.done.notify_one();
        }
    }

    fn sleep_until_after(&self, seen: u64) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while number(self.door.0.load(Ordering::SeqCst)) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a moment of waiting passed.
enum Pause {
    /// Spinning.
    Spun,
    /// The core was offered to others.
    Yielded,
    /// Others want the core: it is time to sleep.
    Crowded,
}

/// One moment of waiting.
fn pause(spins: &mut usize, shared: &Shared) -> Pause {
    *spins += 1;
    if *spins < SPINS {
        std::hint::spin_loop();
        return Pause::Spun;
    }
    // Counted by whoever waits; that two may count one wait does not matter.
    let crowded = shared.crowded.load(Ordering::Relaxed);
    if crowded > 0 {
        shared.crowded.store(crowded - 1, Ordering::Relaxed);
        return Pause::Crowded;
    }
    let offered = Instant::now();
    std::thread::yield_now();
    if offered.elapsed() > CROWDED_AFTER {
        shared.crowded.store(CROWDED_WAITS, Ordering::Relaxed);
    }
    Pause::Yielded
}

fn work(shared: &Shared, index: usize, pinning: &Pinning, mut seen: u64) {
    pin(index, pinning);
    loop {
        seen = shared.wait(seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if !shared.enter(seen) {
            continue;
        }
        // SAFETY: this worker entered the part, so the owner has written the cell and leaves it
        // alone until `finished` counts this worker.
        let part = unsafe { *shared.closure.get() };
        if let Some(part) = part {
            // SAFETY: the owner's borrow lasts until `finished` counts this worker.
            let part = unsafe { &*part };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| part(index))) {
                *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        shared.finish();
    }
}

/// Binds the calling thread, number `index` of its team.
fn pin(index: usize, pinning: &Pinning) {
    let cpus: Arc<[usize]> = match pinning {
        Pinning::None => return,
        Pinning::Cores => usable_cpus().into(),
        Pinning::Cpus(cpus) => Arc::clone(cpus),
    };
    if let Some(cpu) = cpus.get(index % cpus.len().max(1)) {
        bind(*cpu);
    }
}

/// The numbers of the processors that the calling thread may run on; empty where the system does
/// not tell.
#[cfg(target_os = "linux")]
pub fn usable_cpus() -> Vec<usize> {
    // SAFETY: plain data, for which all zeros are a value.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the system writes at most the size given, into a set of our own.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed) } != 0 {
        return Vec::new();
    }
    // SAFETY: the numbers are within the set.
    (0..libc::CPU_SETSIZE as usize)
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &allowed) })
        .collect()
}

#[cfg(target_os = "linux")]
fn bind(cpu: usize) {
    if cpu >= libc::CPU_SETSIZE as usize {
        return;
    }
    // SAFETY: a zeroed set is one, the number is within it, and the system only reads it.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
    }
}

/// The numbers of the processors that the calling thread may run on; empty where the system does
/// not tell.
#[cfg(not(target_os = "linux"))]
pub fn usable_cpus() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn bind(_: usize) {}

#[cfg(test)]
mod tests;
