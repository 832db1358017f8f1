// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest can be asked to do. Each command takes words and answers with lines, `key=value`
//! where they are figures. Sizes are bytes, or have a suffix K, M or G.
//!
//! - `memory.rs`  fill, verify, free, punch: anonymous memory with a pattern; copy
//! - `cgroup.rs`  a control group with a limit on memory
//! - `file.rs`    the same in a tmpfs file: fragments memory in units of a page
//! - `disk.rs`    file systems on disks, files with a pattern on them
//! - `socket.rs`  streams to the host by vsock and TCP
//! - `http.rs`    a request to a service, such as the metadata's
//! - `traffic.rs` requests to disks and streams to the host, for measuring
//! - `busy.rs`    threads that keep using memory and check it
//! - `gpu.rs`     GPU buffers with a pattern, freed every other, exported
//! - `load.rs`    memory with the contents of a disk
//! - `order.rs`   kernel memory in pieces of an order
//! - `pin.rs`     pages that nothing may move
//! - `register.rs` registers of a device without a driver
//! - `screen.rs`  a client that draws on a scanout
//! - `service.rs` a small web service with data in memory
//! - `text.rs`     memory that compresses
//! - `touch.rs`   how long it takes to touch memory
//! - `zram.rs`    a compressed block device with a pattern in it
//! - `repeat.rs`  threads that write to files of the kernel over and over
//! - `program.rs` a program that runs until it is stopped
//! - `kernel.rs`  read, pick, write, list, run, and ways for the machine to end

mod busy;
mod cgroup;
mod disk;
mod file;
mod gpu;
mod http;
mod kernel;
mod load;
mod memory;
mod order;
mod pin;
mod program;
mod register;
mod repeat;
mod screen;
mod service;
mod socket;
mod text;
mod touch;
mod traffic;
mod zram;

use std::fmt::Display;

use crate::console::Answer;

/// What outlives a command.
#[derive(Default)]
pub(crate) struct State {
    memory: memory::Regions,
    files: file::Files,
    busy: busy::Busy,
    gpu: gpu::Sets,
    load: load::Loads,
    order: order::Blocks,
    pins: pin::Pins,
    program: program::Running,
    repeat: repeat::Writers,
    screen: screen::Drawing,
    text: text::Texts,
    touch: touch::Touching,
    zram: zram::Devices,
}

/// Carries out the command that `words` are.
pub(crate) fn perform(state: &mut State, words: &str) -> Answer {
    let words: Vec<&str> = words.split_whitespace().collect();
    match words.as_slice() {
        ["ping"] => Ok(vec![]),
        ["fill", name, size, options @ ..] => state.memory.fill(name, bytes(size)?, options),
        ["verify", name] => state.memory.verify(name),
        ["punch", name, seed] => state.memory.punch(name, number(seed)?),
        ["free", name] => state.memory.free(name),
        ["where", name, page] => state.memory.find(name, number(page)?),
        ["pin", name, page] => {
            let page = number(page)?;
            state.memory.with_page(name, page, |address| state.pins.pin(name, page, address))
        }
        ["unpin", name, page] => state.pins.unpin(name, number(page)?),
        ["copy", size] => memory::copy(bytes(size)?),
        ["file-fill", name, size] => state.files.fill(name, bytes(size)?),
        ["file-punch", name, seed] => state.files.punch(name, number(seed)?),
        ["file-verify", name] => state.files.verify(name),
        ["file-free", name] => state.files.free(name),
        ["busy-start", threads, size] => state.busy.start(number(threads)?, bytes(size)?),
        ["busy-count"] => state.busy.count(),
        ["busy-stop"] => state.busy.stop(),
        ["gpu-fill", name, size, kind] => {
            state.gpu.fill(name, bytes(size)?, kind, || state.program.has_ended())
        }
        ["gpu-punch", name] => state.gpu.punch(name),
        ["gpu-verify", name] => state.gpu.verify(name),
        ["gpu-repaint", name] => state.gpu.repaint(name),
        ["gpu-export", name, count] => state.gpu.export(name, number(count)?),
        ["gpu-import", name] => state.gpu.import(name),
        ["gpu-unexport", name] => state.gpu.unexport(name),
        ["gpu-free", name] => state.gpu.free(name),
        ["cgroup-enter", name, limit] => cgroup::enter(name, bytes(limit)?),
        ["cgroup-used", name] => cgroup::used(name),
        ["cgroup-leave"] => cgroup::leave(),
        ["order-fill", order] => state.order.fill(number(order)?),
        ["order-free"] => state.order.free(),
        ["screen-start", scanout] => state.screen.start(number(scanout)?),
        ["screen-count"] => state.screen.count(),
        ["screen-stop"] => state.screen.stop(),
        ["screen-hold", scanout, seed] => state.screen.hold(number(scanout)?, number(seed)? as u64),
        ["screen-repaint", seed] => state.screen.repaint(number(seed)? as u64),
        ["screen-export"] => state.screen.export(),
        ["screen-held"] => state.screen.held(),
        ["text-fill", name, size] => state.text.fill(name, bytes(size)?),
        ["text-verify", name] => state.text.verify(name),
        ["text-touch", name, count, seed] => state.text.touch(name, number(count)?, number(seed)?),
        ["text-free", name] => state.text.free(name),
        ["load-read", name, path, size] => state.load.read(name, path, bytes(size)?),
        ["load-verify", name, first, count] => {
            state.load.verify(name, number(first)?, number(count)?)
        }
        ["service-start", port, path, size, start_up] => {
            service::start(number(port)?, path, bytes(size)?, bytes(start_up)?)
        }
        ["touch-start", size] => state.touch.start(bytes(size)?),
        ["touch-stop"] => state.touch.stop(),
        ["zram-fill", index, size] => state.zram.fill(number(index)?, bytes(size)?),
        ["zram-rewrite", index] => state.zram.rewrite(number(index)?),
        ["zram-verify", index] => state.zram.verify(number(index)?),
        ["zram-free", index] => state.zram.free(number(index)?),
        ["disk-mount", device, kind, folder] => disk::mount_at(device, kind, folder),
        ["disk-unmount", folder] => disk::unmount_at(folder),
        ["disk-write", path, size, seed] => disk::write(path, bytes(size)?, number(seed)?),
        ["disk-verify", path, size, seed] => disk::verify(path, bytes(size)?, number(seed)?),
        ["vsock-echo", port] => socket::echo_vsock(number(port)?),
        ["vsock-send", port, size, seed] => {
            socket::send_vsock(number(port)?, bytes(size)?, number(seed)?)
        }
        ["tcp-send", address, size, seed] => socket::send_tcp(address, bytes(size)?, number(seed)?),
        ["http", method, address, path, headers @ ..] => {
            http::request(method, address, path, headers)
        }
        ["traffic-disk", device, direction, order, size, depth, span, milliseconds] => {
            traffic::disk(
                device,
                (direction, order),
                (bytes(size)?, number(depth)?, bytes(span)?),
                number(milliseconds)?,
            )
        }
        ["traffic-stream", target, direction, size] => {
            traffic::stream(target, direction, bytes(size)?)
        }
        ["traffic-turns", target, count] => traffic::round_trips(target, number(count)?),
        ["register-read", address] => register::read(number(address)?),
        ["register-write", address, value] => register::write(number(address)?, number(value)?),
        ["repeat-start", name, writes @ ..] => state.repeat.start(name, writes),
        ["repeat-stop", name] => state.repeat.stop(name),
        ["program-start", program, arguments @ ..] => state.program.start(program, arguments),
        ["program-stop"] => state.program.stop(),
        ["read", path] => kernel::read(path),
        ["pick", path, words @ ..] => kernel::pick(path, words),
        ["write", path, value @ ..] => kernel::write(path, &value.join(" ")),
        ["list", path] => kernel::list(path),
        ["run", program, arguments @ ..] => kernel::run(program, arguments),
        ["poweroff"] => kernel::power_off(),
        ["reboot"] => kernel::reboot(),
        ["panic"] => kernel::panic(),
        ["triple-fault"] => kernel::triple_fault(),
        [] => Err("no command".into()),
        [command, ..] => Err(format!("no such command, or wrong arguments: {command}")),
    }
}

/// Turns any error into the reason of an answer.
fn reason(doing: &str) -> impl Fn(&dyn Display) -> String + '_ {
    move |error| format!("{doing}: {error}")
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("not a number: {word}"))
}

/// Parses sizes such as `300M` into bytes.
pub(crate) fn bytes(word: &str) -> Result<usize, String> {
    let (digits, shift) = match word.as_bytes().last() {
        Some(b'K') => (&word[..word.len() - 1], 10),
        Some(b'M') => (&word[..word.len() - 1], 20),
        Some(b'G') => (&word[..word.len() - 1], 30),
        _ => (word, 0),
    };
    number(digits)?.checked_mul(1 << shift).ok_or_else(|| format!("too large: {word}"))
}

/// Picks about half of all page indexes, the same ones for the same seed.
fn coin(seed: usize) -> impl FnMut(usize) -> bool {
    let mut state = (seed as u64).wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    move |_| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 63 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_suffixes() {
        assert_eq!(bytes("12"), Ok(12));
        assert_eq!(bytes("3M"), Ok(3 << 20));
        assert!(bytes("M").is_err());
        assert!(bytes("99999999999999999G").is_err());
    }

    #[test]
    fn the_coin_is_fair_and_repeatable() {
        let throws = |seed| (0..10_000).filter(|&i| coin_at(seed, i)).count();
        fn coin_at(seed: usize, index: usize) -> bool {
            let mut coin = coin(seed);
            (0..=index % 64).map(&mut coin).last().unwrap()
        }
        assert_eq!(throws(1), throws(1));
        let mut coin = coin(7);
        let heads = (0..10_000).filter(|&i| coin(i)).count();
        assert!((4_800..5_200).contains(&heads), "{heads}");
    }

    #[test]
    fn fill_verify_free() {
        let mut state = State::default();
        assert_eq!(perform(&mut state, "fill a 64K").unwrap(), ["pages=16"]);
        assert_eq!(perform(&mut state, "verify a").unwrap(), ["pages=16", "damaged=0"]);
        assert!(perform(&mut state, "fill a 64K").is_err());
        assert_eq!(perform(&mut state, "free a").unwrap(), ["pages=16"]);
        assert!(perform(&mut state, "verify a").is_err());
        assert!(perform(&mut state, "nonsense").is_err());
    }
}
