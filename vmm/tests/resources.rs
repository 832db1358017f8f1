// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every configuration in `resources/` is one that the monitor takes, given the files that
//! `cargo xtask rootfs debian` makes.

use std::fs::{self, File};
use std::path::Path;

use vmm::config::{HostLimits, VmConfig};

/// The API's description, which lies beside the configurations.
const NOT_A_CONFIGURATION: &str = "openapi.json";

#[test]
fn every_configuration_in_resources_validates() {
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources");
    let resources = resources.canonicalize().unwrap();
    // Their paths are relative to the checkout; here they are relative to a folder with stand-ins.
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("target/debian");
    fs::create_dir_all(&files).unwrap();
    let mut kernel = b"\x7fELF\x02\x01\x01".to_vec();
    kernel.resize(64, 0);
    (kernel[16], kernel[18]) = (2, 62); // executable, x86-64
    kernel.resize(4096, 0);
    fs::write(files.join("vmlinux"), kernel).unwrap();
    File::create(files.join("rootfs.ext4")).unwrap().set_len(1 << 20).unwrap();
    std::env::set_current_dir(dir.path()).unwrap();

    let mut checked = Vec::new();
    for entry in fs::read_dir(resources).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.extension().is_none_or(|extension| extension != "json")
            || name == NOT_A_CONFIGURATION
        {
            continue;
        }
        let config = VmConfig::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        config
            .validate(&HostLimits { memory_mib: 8192, mappings: HostLimits::DEFAULT_MAPPINGS })
            .unwrap_or_else(|faults| {
                panic!("{name}: {faults:?}");
            });
        checked.push(name);
    }
    checked.sort();
    for name in ["debian.json", "dense.json", "display.json", "minimal.json", "network.json"] {
        assert!(checked.iter().any(|known| known == name), "{name} is not among {checked:?}");
    }
}
