// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pictures of Debian guests: the kernel's console, and the pattern of Debian's `modetest`.

use std::time::Duration;

use harness::guest::Guest;
use harness::monitor::Spec;
use harness::picture::{Colour, Picture};
use harness::runner::Context;
use harness::{Error, Result, check, check_eq};

const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// A character of the console.
const CELL: (usize, usize) = (8, 16);
/// Written to the console again and again; ten times, with the space behind it, fill a row.
const WORD: &str = "Ballast";

/// Waits until the scanout's picture satisfies `is_right`: the guest's flush may be pending.
fn wait_for_picture(guest: &Guest, what: &str, is_right: impl Fn(&Picture) -> bool) -> Result<()> {
    let mut last = None;
    for _ in 0..100 {
        let picture = guest.picture(0)?;
        if is_right(&picture) {
            return Ok(());
        }
        last = Some(picture);
        std::thread::sleep(Duration::from_millis(100));
    }
    let seen = last.map(|p| format!("{}x{}, {} pixels lit", p.width, p.height, p.lit()));
    Err(Error::Check(format!("the scanout does not show {what}, but {seen:?}")))
}

/// Whether two rows of the console, one below the other, are the same and repeat one word.
fn repeats_a_word(picture: &Picture) -> bool {
    let (width, height) = (picture.width, picture.height);
    let period = CELL.0 * (WORD.len() + 1);
    let row = |n: usize| picture.part(0, n * CELL.1, width, CELL.1);
    let repeats = |row: &Picture| {
        row.part(0, 0, width - period, CELL.1) == row.part(period, 0, width - period, CELL.1)
    };
    (1..height / CELL.1).any(|n| {
        let (above, this) = (row(n - 1), row(n));
        above == this && repeats(&this) && this.lit() > width
    })
}

/// The bars of the pattern by their places, after libdrm's `util/pattern.c`: seven columns in two
/// rows, and four wider ones at the bottom.
fn is_test_pattern(picture: &Picture) -> bool {
    const L: u8 = 192;
    const DARK: Colour = [19; 3];
    const TOP: [Colour; 7] =
        [[L; 3], [L, L, 0], [0, L, L], [0, L, 0], [L, 0, L], [L, 0, 0], [0, 0, L]];
    const MIDDLE: [Colour; 7] = [[0, 0, L], DARK, [L, 0, L], DARK, [0, L, L], DARK, [L; 3]];
    const BOTTOM: [Colour; 4] = [[0, 33, 76], [255; 3], [50, 0, 106], DARK];
    let (width, height) = (picture.width, picture.height);
    if (width, height) != (WIDTH as usize, HEIGHT as usize) {
        return false;
    }
    let row = |colours: &[Colour], width: usize, y: usize| {
        let step = width / colours.len();
        colours.iter().enumerate().all(|(n, colour)| {
            // Away from the edges, on both sides of the middle.
            [step / 4, step * 3 / 4].iter().all(|x| picture.pixel(n * step + x, y) == *colour)
        })
    };
    row(&TOP, width, 10)
        && row(&TOP, width, height / 2)
        && row(&MIDDLE, width, height * 13 / 18)
        && row(&BOTTOM, width * 5 / 7, height * 8 / 9)
}

/// Debian's kernel shows its console, then what `modetest` draws, then its console again.
pub(crate) fn shows_debians_console_and_modetest(context: &Context) -> Result<()> {
    let mut spec = Spec::debian_display(&context.payload, 384).with_gpu(WIDTH, HEIGHT, 1);
    // The kernel's messages go to the screen as well; the agent stays on the serial line.
    spec.boot_args = "console=tty0 console=ttyS0".into();
    let mut guest = Guest::boot(&context.ballast(), spec, &context.logs)?;
    wait_for_picture(&guest, "a console", |picture| picture.lit() > 0)?;
    check!(!repeats_a_word(&guest.picture(0)?), "the console repeats itself from the start");
    let words = [WORD].repeat(60).join(" ");
    guest.agent.command(&format!("write /dev/tty0 {words}"))?;
    wait_for_picture(&guest, "the words", repeats_a_word)?;
    keep(&guest, context, "console.png")?;

    let arguments = format!("-M virtio_gpu -s Virtual-1:{WIDTH}x{HEIGHT}");
    guest.agent.command(&format!("program-start /usr/bin/modetest {arguments}"))?;
    wait_for_picture(&guest, "modetest's pattern", is_test_pattern)?;
    keep(&guest, context, "modetest.png")?;
    let output = guest.agent.command("program-stop")?;
    println!("modetest: {output:?}");

    wait_for_picture(&guest, "the console again", repeats_a_word)?;
    let status = guest.monitor.api().get("/gpu")?;
    check_eq!(status["counters"]["errors"], 0);
    check_eq!(guest.power_off()?.code(), Some(0));
    Ok(())
}

/// Saves the picture with the logs.
fn keep(guest: &Guest, context: &Context, name: &str) -> Result<()> {
    let png = guest.monitor.api().request("GET", "/gpu/scanouts/0", None)?.body;
    std::fs::write(context.logs.join(name), png).map_err(Error::io(name))
}
