//! What a directory holds where a store is to go on, and the taking up of one that a stopped run left. Nothing is changed before
//! the caller has seen the manifest and agreed; what is not ours, or leads out of the store, is never written to.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::error::{Error, Result};
use super::manifest::{
    MANIFEST, Manifest, PARTIAL, SAMPLES, State, check_taps, listed_file, sync_dir,
};
use super::writer::{Shared, StoreWriter, locked, occupied};

/// What is there.
#[derive(Debug)]
pub enum Found {
    /// No store: nothing at all, or what a run killed in its first moments left, which is gone now.
    Nothing,
    /// A store whose run ended well.
    Complete(Box<Manifest>),
    /// One whose run did not. It is locked from here on.
    Unfinished(Box<Unfinished>),
}

/// A partial store, locked and otherwise untouched.
#[derive(Debug)]
pub struct Unfinished(Shared);

/// Looks for a store in `dir`, and locks a partial one.
///
/// # Errors
/// Another process writes it, it is damaged, or there is something else in the directory.
pub fn find(dir: &Path) -> Result<Found> {
    if !dir.exists() {
        return Ok(Found::Nothing);
    }
    if !dir.is_dir() {
        return Err(Error::NotADirectory {
            path: dir.to_owned(),
        });
    }
    let root = dir.canonicalize().map_err(|e| Error::io("read", dir, e))?;
    let partial = root.join(PARTIAL);
    match fs::symlink_metadata(&partial) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(Error::damaged(&partial, "is not a directory of the store")),
        Err(_) if is_empty(&root)? => return Ok(Found::Nothing),
        Err(_) if !root.join(MANIFEST).exists() => return Err(occupied(dir)),
        Err(_) => {
            let manifest = Manifest::read(&root)?;
            if manifest.state == State::Complete {
                return Ok(Found::Complete(Box::new(manifest)));
            }
            fs::create_dir(&partial).map_err(|e| Error::write(&partial, 0, 0, e))?;
        }
    }
    let lock = locked(&root)?;
    if fs::symlink_metadata(root.join(MANIFEST)).is_err() {
        clear_beginning(&root, dir)?;
        return Ok(Found::Nothing);
    }
    let manifest = Manifest::read(&root)?;
    if manifest.state == State::Complete {
        // All that its run had still to do.
        fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
        return Ok(Found::Complete(Box::new(manifest)));
    }
    Ok(Found::Unfinished(Box::new(Unfinished(Shared {
        root,
        manifest,
        journaled: Arc::new(AtomicBool::new(true)),
        _lock: lock,
    }))))
}

fn is_empty(dir: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?;
    Ok(entries.next().is_none())
}

/// Removes what a run leaves that is killed before its first manifest: `.partial/` and empty folders.
fn clear_beginning(root: &Path, dir: &Path) -> Result<()> {
    let failed = |e| Error::io("read", root, e);
    let mut folders = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        if entry.file_name() == PARTIAL {
            continue;
        }
        if !is_folder || !is_empty(&entry.path())? {
            return Err(Error::NotEmpty {
                path: dir.to_owned(),
            });
        }
        folders.push(entry.path());
    }
    let partial = root.join(PARTIAL);
    for folder in folders {
        fs::remove_dir(&folder).map_err(|e| Error::io("remove", &folder, e))?;
    }
    fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))
}

impl Unfinished {
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// Goes on after the last committed shard. What of the next one was finished is taken up when it is begun.
    ///
    /// # Errors
    /// A committed file is missing or has another length, a folder is not the store's own, or the disk fails.
    pub fn go_on(self) -> Result<StoreWriter> {
        let mut shared = self.0;
        let (root, manifest) = (&shared.root, &mut shared.manifest);
        check_taps(&manifest.taps).map_err(Error::Plan)?;
        for shard in &manifest.shards {
            listed_file(root, &shard.samples_file.file, shard.samples_file.bytes)?;
            for file in &shard.taps {
                listed_file(root, &file.file, file.bytes)?;
            }
        }
        let folders = manifest.taps.iter().map(|t| t.folder.as_str());
        for folder in folders.chain([SAMPLES]) {
            take_back(root, folder, manifest)?;
        }
        manifest.attempts = manifest.attempts.saturating_add(1);
        manifest.publish(root)?;
        Ok(StoreWriter::of(shared))
    }

    /// Throws the store away: nothing in it can be gone on from. The directory is then as if it had never been begun.
    ///
    /// # Errors
    /// A shard was committed, or the disk fails.
    pub fn discard(self) -> Result<()> {
        let Shared { root, manifest, .. } = &self.0;
        if !manifest.shards.is_empty() {
            return Err(Error::Plan(
                "a store with committed shards is not thrown away".into(),
            ));
        }
        let folders = manifest.taps.iter().map(|t| t.folder.as_str());
        for folder in folders.chain([SAMPLES]) {
            take_back(root, folder, manifest)?;
        }
        let path = root.join(MANIFEST);
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        clear_beginning(root, root)
    }
}

/// Takes the file of the shard that comes next out of its folder and back to `.partial/`: a run killed while it committed that shard may
/// have put it there. A samples table goes; it is written anew.
fn take_back(root: &Path, folder: &str, manifest: &Manifest) -> Result<()> {
    let dir = root.join(folder);
    match fs::symlink_metadata(&dir) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(Error::damaged(&dir, "is not a directory of the store")),
        Err(_) => {
            fs::create_dir(&dir).map_err(|e| Error::write(&dir, 0, 0, e))?;
            return Ok(());
        }
    }
    let index = manifest.shards.len();
    let failed = |path: &Path, e| Error::write(path, 0, 0, e);
    if folder == SAMPLES {
        // The next shard's, and whatever was widened for it: all that is not listed and has our names.
        let listed = |name: &str| {
            let file = format!("{SAMPLES}/{name}");
            manifest.shards.iter().any(|s| s.samples_file.file == file)
        };
        for entry in fs::read_dir(&dir).map_err(|e| Error::io("read", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("read", &dir, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = |shard: usize| name.starts_with(&format!("{shard:05}."));
            if name.ends_with(".parquet") && (0..=index).any(ours) && !listed(&name) {
                fs::remove_file(entry.path()).map_err(|e| failed(&entry.path(), e))?;
            }
        }
        return Ok(());
    }
    let there = dir.join(format!("{index:05}.safetensors"));
    let name = format!("{index:05}.{folder}.safetensors");
    let back = root.join(PARTIAL).join(name);
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
    if is_file(&there) && fs::symlink_metadata(&back).is_err() {
        fs::rename(&there, &back).map_err(|e| failed(&back, e))?;
        sync_dir(&dir)?;
    }
    Ok(())
}
