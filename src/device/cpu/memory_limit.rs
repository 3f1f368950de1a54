//! How much memory the process may use by its control groups: a container or batch job has a part of the machine's.

use std::path::{Component, Path};

/// The lowest limit of any control group that this process belongs to; `None`: there is none.
pub fn memory_limit() -> Option<u64> {
    let membership = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_in(Path::new("/sys/fs/cgroup"), &membership)
}

/// The same for a `root` where control groups are mounted, and the text of /proc/self/cgroup: lines of
/// `number:controllers:path`, where version 2 has the number 0 and no controllers.
///
/// Limits of all ancestors hold. In a container, the path may be the host's while the mount shows only the container's
/// own group, as the root: what is not there is skipped, and the root is always looked at.
fn limit_in(root: &Path, membership: &str) -> Option<u64> {
    let lines = membership.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        Some((parts.next()?, parts.next()?, parts.next()?))
    });
    let limits = lines.filter_map(|(number, controllers, path)| match (number, controllers) {
        // Beside version 1, version 2 is mounted below it.
        ("0", "") => {
            let places = [root.to_path_buf(), root.join("unified")];
            places.iter().filter_map(|place| lowest(place, path, "memory.max")).min()
        }
        (_, controllers) if controllers.split(',').any(|name| name == "memory") => {
            let places = [root.join("memory"), root.join(controllers)];
            places.iter().filter_map(|place| lowest(place, path, "memory.limit_in_bytes")).min()
        }
        _ => None,
    });
    limits.min()
}

/// The lowest number in the files called `file` of the group `path` and its ancestors, up to `place`.
fn lowest(place: &Path, path: &str, file: &str) -> Option<u64> {
    let mut group = place.to_path_buf();
    // A path that leads out of the namespace of this process (`/../other`) names nothing that can be seen.
    let components = Path::new(path).components();
    let names = components.map_while(|component| match component {
        Component::RootDir => Some(Path::new("")),
        Component::Normal(name) => Some(Path::new(name)),
        _ => None,
    });
    let groups = names.map(|name| {
        group.push(name);
        group.join(file)
    });
    let files: Vec<_> = std::iter::once(place.join(file)).chain(groups).collect();
    // `max` is no limit, and no number.
    files.iter().filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up /sys/fs/cgroup.
    fn mount(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn version_2_takes_the_lowest_of_all_ancestors() {
        let files = [
            ("a/memory.max", "5000\n"),
            ("a/b/memory.max", "9000\n"),
            ("a/b/c/memory.max", "max\n"),
            ("other/memory.max", "1\n"),
        ];
        let root = mount(&files);
        let limit = |membership| limit_in(root.path(), membership);
        assert_eq!(limit("0::/a/b/c\n"), Some(5000));
        assert_eq!(limit("0::/a/b/not-mounted\n"), Some(5000));
        assert_eq!(limit("0::/\n"), None, "the root of the machine has no limit");
        assert_eq!(limit("0::/../other\n"), None);
        assert_eq!(limit(""), None);
        assert_eq!(limit("nonsense\n0:\n"), None);
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let root = mount(&[("memory.max", "7000\n")]);
        assert_eq!(limit_in(root.path(), "0::/\n"), Some(7000));
        assert_eq!(limit_in(root.path(), "0::/docker/0123\n"), Some(7000));
        assert_eq!(limit_in(root.path(), "0::/../../other\n"), Some(7000));
    }

    #[test]
    fn version_1_and_both_together() {
        let files = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/job/memory.limit_in_bytes", "6000\n"),
            ("memory/job/step/memory.limit_in_bytes", "8000\n"),
            ("cpu/job/memory.limit_in_bytes", "1\n"),
        ];
        let root = mount(&files);
        let v1 = "9:cpu,cpuacct:/job\n4:memory:/job/step\n1:name=systemd:/a:b\n";
        assert_eq!(limit_in(root.path(), v1), Some(6000));
        assert_eq!(limit_in(root.path(), "4:memory:/\n"), Some(9_223_372_036_854_771_712));
        let root = mount(&[("unified/job/memory.max", "4000\n"), ("cpu,memory/memory.limit_in_bytes", "5000\n")]);
        assert_eq!(limit_in(root.path(), "4:cpu,memory:/\n"), Some(5000));
        assert_eq!(limit_in(root.path(), "4:cpu,memory:/\n0::/job\n"), Some(4000));
    }
}
