// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any sequence of requests against a model: the disk behaves like a vector of bytes.

use proptest::prelude::*;

use super::*;

const DISK_SECTORS: u64 = 64;

#[derive(Debug, Clone)]
enum Request {
    Write { sector: u64, sectors: usize, seed: u64 },
    Read { sector: u64, sectors: usize },
    Zero { sector: u64, sectors: u32, unmap: bool },
    Flush,
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let sector = 0..DISK_SECTORS + 2;
    let request = prop_oneof![
        (sector.clone(), 0usize..12, any::<u64>())
            .prop_map(|(sector, sectors, seed)| Request::Write { sector, sectors, seed }),
        (sector.clone(), 0usize..12)
            .prop_map(|(sector, sectors)| Request::Read { sector, sectors }),
        (sector, 0u32..12, any::<bool>()).prop_map(|(sector, sectors, unmap)| Request::Zero {
            sector,
            sectors,
            unmap
        }),
        Just(Request::Flush),
    ];
    prop::collection::vec(request, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_disk_is_a_vector_of_bytes(requests in requests()) {
        for disk in ALL {
            let mut rig = Rig::new(disk);
            let mut model = vec![0u8; (SECTORS * 512) as usize];
            // The end of the disk, so that some requests reach beyond it.
            let base = SECTORS - DISK_SECTORS;
            let fits = |sector: u64, sectors: usize| sector + sectors as u64 <= DISK_SECTORS;
            for request in &requests {
                let place = |sector: u64, sectors: usize| {
                    let start = ((base + sector) * 512) as usize;
                    start..start + sectors * 512
                };
                match *request {
                    Request::Write { sector, sectors, seed } => {
                        let data = pattern(seed, sectors * 512);
                        let ok = fits(sector, sectors);
                        prop_assert_eq!(rig.write(base + sector, &data) == OK, ok);
                        if ok {
                            model[place(sector, sectors)].copy_from_slice(&data);
                        }
                    }
                    Request::Read { sector, sectors } => {
                        let (status, data) = rig.read(base + sector, sectors * 512);
                        prop_assert_eq!(status == OK, fits(sector, sectors));
                        if status == OK {
                            prop_assert!(data == model[place(sector, sectors)], "{:?}", disk);
                        }
                    }
                    Request::Zero { sector, sectors, unmap } => {
                        let ok = fits(sector, sectors as usize);
                        let status =
                            rig.range(WRITE_ZEROES, base + sector, sectors, u32::from(unmap));
                        prop_assert_eq!(status == OK, ok);
                        if ok {
                            model[place(sector, sectors as usize)].fill(0);
                        }
                    }
                    Request::Flush => prop_assert_eq!(rig.send(FLUSH, 0, &[]), OK),
                }
            }
        }
    }
}
