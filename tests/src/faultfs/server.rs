//! The file system itself: passes everything on to the backing folder, except what the rules say.
//!
//! Nothing is cached by the kernel (direct I/O, attributes valid for no time), so that what lies in
//! the backing folder after a power cut is what the next process sees. Locks are the kernel's.

use super::unsynced::Unsynced;
use super::{Op, Shared, State, lock};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, Mode};
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// For how long the kernel may believe a name or an attribute.
const FRESH: Duration = Duration::ZERO;
const ENOENT: i32 = 2;
const EBADF: i32 = 9;

pub(super) struct Server {
    state: Shared,
}

fn error(number: i32) -> Error {
    Error::from_raw_os_error(number)
}

fn attributes(number: u64, data: &Metadata) -> FileAttr {
    let kind = data.file_type();
    let time = |seconds: i64, nanoseconds: i64| {
        SystemTime::UNIX_EPOCH
            + Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32)
    };
    FileAttr {
        ino: INodeNo(number),
        size: data.len(),
        blocks: data.blocks(),
        atime: time(data.atime(), data.atime_nsec()),
        mtime: time(data.mtime(), data.mtime_nsec()),
        ctime: time(data.ctime(), data.ctime_nsec()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: match kind {
            _ if kind.is_dir() => FileType::Directory,
            _ if kind.is_symlink() => FileType::Symlink,
            _ if kind.is_socket() => FileType::Socket,
            _ => FileType::RegularFile,
        },
        perm: (data.mode() & 0o7777) as u16,
        nlink: data.nlink() as u32,
        uid: data.uid(),
        gid: data.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl State {
    fn path(&self, number: INodeNo) -> Result<PathBuf> {
        self.paths.get(&number.0).cloned().ok_or_else(|| error(ENOENT))
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn entry(&mut self, path: PathBuf) -> Result<FileAttr> {
        let data = self.backing.join(&path).symlink_metadata()?;
        Ok(attributes(self.number_of(path), &data))
    }

    fn attributes(&self, number: INodeNo) -> Result<FileAttr> {
        let data = match self.paths.get(&number.0) {
            Some(path) => self.backing.join(path).symlink_metadata()?,
            // Its name is gone, but somebody has it open.
            None => self.handle_of(number)?.metadata()?,
        };
        Ok(attributes(number.0, &data))
    }

    fn handle_of(&self, number: INodeNo) -> Result<&Arc<File>> {
        let open = self.handles.values().find(|(of, _)| *of == number.0);
        open.map(|(_, file)| file).ok_or_else(|| error(ENOENT))
    }

    fn handle(&self, handle: FileHandle) -> Result<(u64, Arc<File>)> {
        self.handles.get(&handle.0).cloned().ok_or_else(|| error(EBADF))
    }

    fn opened(&mut self, number: u64, file: File) -> FileHandle {
        self.last_handle += 1;
        self.handles.insert(self.last_handle, (number, Arc::new(file)));
        FileHandle(self.last_handle)
    }

    fn open(&mut self, number: INodeNo) -> Result<FileHandle> {
        let path = self.backing.join(self.path(number)?);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(self.opened(number.0, file))
    }

    fn create(&mut self, path: PathBuf, mode: u32) -> Result<(FileAttr, FileHandle)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(mode);
        let file = options.open(self.backing.join(&path))?;
        let attributes = self.entry(path)?;
        Ok((attributes, self.opened(attributes.ino.0, file)))
    }

    fn write(&mut self, handle: FileHandle, offset: u64, data: &[u8]) -> Result<u32> {
        let (number, file) = self.handle(handle)?;
        self.unsynced.entry(number).or_default().note(&file, offset, data.len() as u64)?;
        file.write_all_at(data, offset)?;
        Ok(data.len() as u32)
    }

    fn resize(&mut self, number: INodeNo, length: u64) -> Result<()> {
        let file = match self.paths.get(&number.0) {
            Some(path) => Arc::new(OpenOptions::new().write(true).open(self.backing.join(path))?),
            None => self.handle_of(number)?.clone(),
        };
        let old = file.metadata()?.len();
        file.set_len(length)?;
        let unsynced = self.unsynced.entry(number.0).or_default();
        if length > old {
            unsynced.grown(old)
        } else {
            unsynced.truncated(length)
        }
        Ok(())
    }

    fn allocate(&mut self, handle: FileHandle, mode: i32, offset: u64, length: u64) -> Result<()> {
        let (number, file) = self.handle(handle)?;
        let old = file.metadata()?.len();
        rustix::fs::fallocate(&*file, FallocateFlags::from_bits_retain(mode as u32), offset, length)?;
        if file.metadata()?.len() > old {
            self.unsynced.entry(number).or_default().grown(old);
        }
        Ok(())
    }

    fn list(&mut self, folder: INodeNo) -> Result<Vec<(u64, FileType, std::ffi::OsString)>> {
        let path = self.path(folder)?;
        let mut all = vec![
            (folder.0, FileType::Directory, ".".into()),
            (INodeNo::ROOT.0, FileType::Directory, "..".into()),
        ];
        for found in std::fs::read_dir(self.backing.join(&path))? {
            let name = found?.file_name();
            let attributes = self.entry(path.join(&name))?;
            all.push((attributes.ino.0, attributes.kind, name));
        }
        Ok(all)
    }
}

impl Server {
    pub fn new(state: Shared) -> Self {
        Self { state }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        act(&mut lock(&self.state))
    }
}

fn answer(reply: ReplyEmpty, outcome: Result<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

/// Answers now, or on a thread of its own after the delay, so that nobody else waits.
fn after(delay: Duration, answer: impl FnOnce() + Send + 'static) {
    if delay.is_zero() {
        return answer();
    }
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        answer();
    });
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.with(|state| state.entry(state.child(parent, name)?)) {
            Ok(attributes) => reply.entry(&FRESH, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|state| state.attributes(number)) {
            Ok(attributes) => reply.attr(&FRESH, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let outcome = self.with(|state| {
            if let Some(size) = size {
                state.resize(number, size)?;
            }
            if let Some(mode) = mode {
                let path = state.backing.join(state.path(number)?);
                std::fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
            }
            state.attributes(number)
        });
        match outcome {
            Ok(attributes) => reply.attr(&FRESH, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let outcome = self.with(|state| {
            let path = state.child(parent, name)?;
            let kind = rustix::fs::FileType::from_raw_mode(mode);
            let place = state.backing.join(&path);
            rustix::fs::mknodat(rustix::fs::CWD, place, kind, Mode::from_raw_mode(mode), 0)?;
            state.entry(path)
        });
        match outcome {
            Ok(attributes) => reply.entry(&FRESH, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let outcome = self.with(|state| {
            let path = state.child(parent, name)?;
            let place = state.backing.join(&path);
            std::fs::create_dir(&place)?;
            std::fs::set_permissions(place, Permissions::from_mode(mode & !umask & 0o7777))?;
            state.entry(path)
        });
        match outcome {
            Ok(attributes) => reply.entry(&FRESH, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.with(|state| {
            let path = state.child(parent, name)?;
            std::fs::remove_file(state.backing.join(&path))?;
            state.forget(&path);
            Ok(())
        });
        answer(reply, outcome);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.with(|state| {
            let path = state.child(parent, name)?;
            std::fs::remove_dir(state.backing.join(&path))?;
            state.forget(&path);
            Ok(())
        });
        answer(reply, outcome);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let outcome = self.with(|state| {
            let (from, to) = (state.child(parent, name)?, state.child(new_parent, new_name)?);
            std::fs::rename(state.backing.join(&from), state.backing.join(&to))?;
            state.renamed(&from, &to);
            Ok(())
        });
        answer(reply, outcome);
    }

    /// A second name. What a power cut forgets is kept by the first one only.
    fn link(&self, _: &Request, number: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let outcome = self.with(|state| {
            let (from, to) = (state.path(number)?, state.child(new_parent, new_name)?);
            std::fs::hard_link(state.backing.join(from), state.backing.join(&to))?;
            state.entry(to)
        });
        match outcome {
            Ok(attributes) => reply.entry(&FRESH, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.with(|state| state.open(number)) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.with(|state| state.create(state.child(parent, name)?, mode & !umask)) {
            Ok((attributes, handle)) => {
                reply.created(&FRESH, &attributes, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<fuser::LockOwner>,
        reply: ReplyData,
    ) {
        let outcome = self.with(|state| state.handle(handle)).and_then(|(_, file)| {
            let mut data = vec![0; size as usize];
            let mut filled = 0;
            while filled < data.len() {
                match file.read_at(&mut data[filled..], offset + filled as u64)? {
                    0 => break,
                    n => filled += n,
                }
            }
            data.truncate(filled);
            Ok(data)
        });
        match outcome {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<fuser::LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.state);
        let (failure, delay) = state.judge(Op::Write, number.0, data.len());
        let outcome = match failure {
            Some(number) => Err(error(number)),
            None => state.write(handle, offset, data),
        };
        drop(state);
        after(delay, move || match outcome {
            Ok(length) => reply.written(length),
            Err(error) => reply.error(error.into()),
        });
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = lock(&self.state);
        state.syncs += 1;
        let (failure, delay) = state.judge(Op::Sync, number.0, 0);
        let retried = state.unsynced.get(&number.0).is_some_and(Unsynced::has_failed);
        state.retries += u64::from(retried);
        let unsynced = state.unsynced.entry(number.0).or_default();
        // It takes effect at once and is answered later: writes that come meanwhile are not in it.
        let outcome = match failure {
            Some(number) => {
                unsynced.sync_failed();
                Err(error(number))
            }
            None => {
                unsynced.synced();
                Ok(())
            }
        };
        drop(state);
        after(delay, move || answer(reply, outcome));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<fuser::LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.state).handles.remove(&handle.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, folder: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.with(|state| state.list(folder)) {
            Ok(all) => {
                for (index, (number, kind, name)) in all.into_iter().enumerate().skip(offset as usize) {
                    if reply.add(INodeNo(number), index as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.with(|state| Ok(rustix::fs::statvfs(&state.backing)?)) {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                255,
                s.f_frsize as u32,
            ),
            Err(error) => reply.error(error.into()),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.with(|state| state.allocate(handle, mode, offset, length)));
    }
}
