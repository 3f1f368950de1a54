//! The half in the trainer: publishes the step, takes commands, answers.
//!
//! Never waits. A command that comes is copied and checked at once; it is handed over when its step has come, and answered
//! when it was carried out. A newer request takes the place of one that still waits: clients send `Cancel` so.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::command::{Answer, Command, Status};
use super::error::ControlError;
use super::page::{Identity, LONGEST_NAME, PAGE_BYTES, page_path, read_text, state, word, write_identity, write_text};
use crate::ring::{Access, Map, create_private, load_acquire, obtain};

/// The server of one page.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    page: Map,
    /// The request that was looked at last.
    seen: u64,
    /// A command whose step has not come.
    waiting: Option<(u64, Command)>,
    pid: u32,
}

impl Server {
    /// Creates the page of `ring`, readable and writable by its owner only. A file that is already there is an error.
    pub fn create(ring: &Path, identity: &Identity) -> Result<Self, ControlError> {
        let path = page_path(ring);
        let failed = |action| {
            let path = path.clone();
            move |source| ControlError::Io { action, path, source }
        };
        let file = create_private(&path).map_err(failed("create"))?;
        let page = Self::map(&file).map_err(failed("map")).inspect_err(|_| drop(fs::remove_file(&path)))?;
        write_identity(&page, identity);
        Ok(Self { path, page, seen: 0, waiting: None, pid: std::process::id() })
    }

    fn map(file: &File) -> io::Result<Map> {
        file.set_len(PAGE_BYTES)?;
        obtain(file, 0, PAGE_BYTES)?;
        Map::new(file, PAGE_BYTES, Access::ReadWrite)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Step `step` is about to begin: publishes that, and returns a command that is to be carried out before it. Every
    /// command that is returned has to be answered.
    #[inline]
    pub fn poll(&mut self, step: u64) -> Option<Command> {
        self.page[word::STEP].store(step, Ordering::Relaxed);
        if self.page[word::REQUEST].load(Ordering::Relaxed) != self.seen {
            self.take(step);
        }
        match &self.waiting {
            Some((at, _)) if *at <= step => self.waiting.take().map(|(_, command)| command),
            _ => None,
        }
    }

    /// Copies a request. What is no command is answered here.
    #[cold]
    fn take(&mut self, step: u64) {
        self.seen = load_acquire(&self.page[word::REQUEST]);
        let get = |index: usize| self.page[index].load(Ordering::Relaxed);
        let name = read_text(&self.page[word::NAME..], LONGEST_NAME).map_err(|error| format!("the name is {error}"));
        let taken_back = self.waiting.take();
        match Command::decode(get(word::KIND), get(word::NUMBER), name) {
            Ok(Command::Cancel) => {
                let text = if taken_back.is_some() { "" } else { "no command was waiting" };
                self.answer(&Answer::done(step, text));
            }
            Ok(command) => self.waiting = Some((get(word::AT_STEP), command)),
            Err(error) => self.answer(&Answer::refused(step, error)),
        }
    }

    /// Answers the command that [`Server::poll`] returned.
    pub fn answer(&self, answer: &Answer) {
        let set = |index: usize, value: u64| self.page[index].store(value, Ordering::Relaxed);
        set(word::STATUS, u64::from(answer.status == Status::Refused));
        set(word::ANSWER_STEP, answer.step);
        write_text(&self.page[word::TEXT..], &answer.text);
        self.page[word::ANSWERED].store(self.seen, Ordering::Release);
    }
}

impl Drop for Server {
    /// The page stays beside its ring. A forked child has a copy of this value and is not the server.
    fn drop(&mut self) {
        if std::process::id() == self.pid {
            self.page[word::STATE].store(state::CLOSED, Ordering::Release);
        }
    }
}
