// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask kernel-series`: the series as mails, signed off by the sender.

use std::fs;
use std::path::PathBuf;

use super::Series;
use crate::error::{IoContext, Result, task_error};
use crate::paths;

/// Who the patches in the repository are from: a placeholder, which cannot sign.
const PLACEHOLDER: &str = "Ballast developers <maintainers@users.noreply.r-seed-7e4142a4.example>";

/// What to write, and whose name to put to it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Name and mail address of the person who signs off the patches
    #[arg(long, value_name = "NAME <MAIL>")]
    sign: String,
    /// Output directory for the patches; created if missing, must not contain patches
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Version of the series
    #[arg(long, default_value_t = 1)]
    version: u32,
}

/// Writes cover letter and patches.
pub(crate) fn write(options: &Options) -> Result<()> {
    check_signer(&options.sign)?;
    let folder = paths::workspace().join("guest-kernel");
    let series = Series::read(&folder)?;
    let cover = folder.join("cover-letter.txt");
    let letter = fs::read_to_string(&cover).doing("reading", &cover)?;

    fs::create_dir_all(&options.to).doing("creating", &options.to)?;
    let mut files = fs::read_dir(&options.to).doing("reading", &options.to)?;
    if files.any(|file| file.is_ok_and(|f| f.file_name().to_string_lossy().ends_with(".patch"))) {
        return task_error(format!(
            "{} has patches already: give an empty folder",
            options.to.display()
        ));
    }
    let patches: Vec<_> = series.paths().map(PathBuf::from).collect();
    let total = patches.len();
    let place = options.to.join("0000-cover-letter.patch");
    let text = cover_letter(&letter, &options.sign, &tag(options.version, 0, total));
    fs::write(&place, text).doing("writing", &place)?;
    for (number, path) in patches.iter().enumerate() {
        let text = fs::read_to_string(path).doing("reading", path)?;
        let signed = sign(&text, &options.sign, &tag(options.version, number + 1, total));
        let Some(signed) = signed else {
            return task_error(format!(
                "{} is not from the placeholder that this command replaces",
                path.display()
            ));
        };
        let place = options.to.join(path.file_name().unwrap_or_default());
        fs::write(&place, signed).doing("writing", &place)?;
    }
    println!("{total} patches and a cover letter in {}", options.to.display());
    Ok(())
}

/// `Name <mail@host>`.
fn check_signer(signer: &str) -> Result<()> {
    let valid = signer
        .strip_suffix('>')
        .and_then(|rest| rest.split_once(" <"))
        .is_some_and(|(name, mail)| !name.trim().is_empty() && mail.contains('@'));
    if valid && !signer.contains(['\n', '\r']) {
        return Ok(());
    }
    task_error(format!("invalid signer {signer:?}: expected \"Name <name@host>\""))
}

fn tag(version: u32, number: usize, total: usize) -> String {
    let width = total.to_string().len();
    let version = if version > 1 { format!(" v{version}") } else { String::new() };
    format!("[PATCH{version} {number:0width$}/{total}]")
}

/// The first line is the subject.
fn cover_letter(letter: &str, signer: &str, tag: &str) -> String {
    let (subject, body) = letter.split_once('\n').unwrap_or((letter, ""));
    format!(
        "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\nFrom: {signer}\n\
         Subject: {tag} {subject}\n{body}"
    )
}

/// The patch with another sender, signed off by them; `None` if it is not the placeholder's.
fn sign(patch: &str, signer: &str, tag: &str) -> Option<String> {
    let from = format!("From: {PLACEHOLDER}\n");
    let signed_off = format!("Signed-off-by: {PLACEHOLDER}\n");
    if !patch.contains(&from) || !patch.contains(&signed_off) {
        return None;
    }
    let patch = patch.replacen(&from, &format!("From: {signer}\n"), 1).replacen(
        &signed_off,
        &format!("Signed-off-by: {signer}\n"),
        1,
    );
    // A patch that asks for comments says so, as git format-patch --rfc writes it.
    for (prefix, marked) in [("[PATCH]", "["), ("[RFC PATCH]", "[RFC ")] {
        let subject = format!("Subject: {prefix}");
        if patch.contains(&subject) {
            let tag = tag.replacen('[', marked, 1);
            return Some(patch.replacen(&subject, &format!("Subject: {tag}"), 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNER: &str = "Jo Doe <jo@example.org>";

    #[test]
    fn a_patch_gets_the_name_of_its_signer_and_a_number() {
        let patch = format!(
            "From 0\nFrom: {PLACEHOLDER}\nSubject: [PATCH] mm: x\n\nText.\n\n\
             Signed-off-by: {PLACEHOLDER}\n---\n"
        );
        let signed = sign(&patch, SIGNER, &tag(1, 3, 36)).unwrap();
        assert!(signed.contains("Subject: [PATCH 03/36] mm: x\n"), "{signed}");
        assert!(signed.contains("Signed-off-by: Jo Doe <jo@example.org>\n"), "{signed}");
        assert!(!signed.contains("Ballast"), "{signed}");
    }

    #[test]
    fn a_request_for_comments_stays_one() {
        let patch = format!(
            "From: {PLACEHOLDER}\nSubject: [RFC PATCH] mm: x\n\nSigned-off-by: {PLACEHOLDER}\n"
        );
        let signed = sign(&patch, SIGNER, &tag(2, 3, 36)).unwrap();
        assert!(signed.contains("Subject: [RFC PATCH v2 03/36] mm: x\n"), "{signed}");
    }

    #[test]
    fn a_patch_of_another_sender_is_not_signed() {
        assert_eq!(sign("From: Jo Doe <jo@example.org>\n", SIGNER, "[PATCH 1/1]"), None);
    }

    #[test]
    fn rejects_signers_without_a_name_or_an_address() {
        assert!(check_signer(SIGNER).is_ok());
        for bad in ["", "Jo", "Jo <jo>", " <jo@example.org>", "Jo <jo@a>\nX: <y>"] {
            assert!(check_signer(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_patch_of_the_series_can_be_signed() {
        let series = Series::read(&paths::workspace().join("guest-kernel")).unwrap();
        for path in series.paths() {
            let text = fs::read_to_string(path).unwrap();
            assert!(sign(&text, SIGNER, "[PATCH 1/1]").is_some(), "{}", path.display());
        }
    }
}
