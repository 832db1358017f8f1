// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules about kernel, initrd and command line.

use super::*;

#[test]
fn kernel_and_initrd_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let mut config = bootable(&none);
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);

    // A directory, a FIFO, something else, something short.
    config.boot_source.as_mut().unwrap().kernel_image_path = dir.path().to_owned();
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    config.boot_source.as_mut().unwrap().kernel_image_path = fifo;
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);
    let text = dir.path().join("text");
    std::fs::write(&text, "no kernel").unwrap();
    config.boot_source.as_mut().unwrap().kernel_image_path = text;
    assert_eq!(fields(&config), ["boot-source.kernel_image_path"]);

    let mut image = vec![0; 0x202];
    image.extend(b"HdrS");
    let bzimage = dir.path().join("bzImage");
    std::fs::write(&bzimage, image).unwrap();
    let boot = config.boot_source.as_mut().unwrap();
    boot.kernel_image_path = bzimage;
    boot.initrd_path = Some(none);
    assert_eq!(fields(&config), ["boot-source.initrd_path"]);
}

#[test]
fn a_command_line_must_fit_with_what_the_machine_adds() {
    let kernel = elf();
    let fits = |len: usize, prefix: &str, cma_mib: u64| {
        let mut config = bootable(kernel.path());
        config.memory.cma_mib = cma_mib;
        let boot = config.boot_source.as_mut().unwrap();
        boot.boot_args = Some(format!("{prefix}{}", "x".repeat(len - prefix.len())));
        config.validate(&HOST).is_ok()
    };
    assert!(fits(2047, "", 0));
    assert!(!fits(2048, "", 0));
    assert!(!fits(2047, "", 64));
    for option in ["acpi=off ", "acpi=noirq ", "noapic ", "nolapic "] {
        assert!(!fits(2047, option, 0), "{option}");
        assert!(fits(1200, option, 64), "{option}");
    }
    let mut config = bootable(kernel.path());
    config.boot_source.as_mut().unwrap().boot_args = Some("a\nb".into());
    assert_eq!(fields(&config), ["boot-source.boot_args"]);
}

#[test]
fn files_of_the_wrong_kind_are_named() {
    let problem = |boot: BootSource| {
        let config = VmConfig { boot_source: Some(boot), ..VmConfig::default() };
        config.validate(&HOST).unwrap_err().to_string()
    };
    let kernel = elf();
    let boot = |kernel: &Path| BootSource {
        kernel_image_path: kernel.to_owned(),
        initrd_path: None,
        boot_args: None,
    };
    for (path, says) in [
        ("/bin/ls", "a program that runs under Linux, not a kernel: give an ELF vmlinux"),
        ("/", "a directory, not a regular file"),
        ("/dev/null", "a device, not a regular file"),
        ("/no/such/kernel", "No such file"),
    ] {
        let problem = problem(boot(Path::new(path)));
        assert!(problem.starts_with("boot-source.kernel_image_path: ") && problem.contains(says));
    }
    let with =
        |initrd: &Path| BootSource { initrd_path: Some(initrd.to_owned()), ..boot(kernel.path()) };
    let problem = [problem(with(kernel.path())), problem(with(Path::new("/dev")))];
    assert!(problem[0].contains("which is a kernel: give an initial RAM disk"), "{problem:?}");
    assert!(problem[1].contains("a directory"), "{problem:?}");
}
