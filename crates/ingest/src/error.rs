use kinara_store::explain;

/// Why a transaction did not commit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database, or the way to it.
    #[error("database: {}", explain(.0))]
    Database(#[from] tokio_postgres::Error),
    /// No connection.
    #[error("no database connection: {0}")]
    Pool(#[from] kinara_store::PoolError),
    /// The database holds something that this program cannot read.
    #[error("the database holds {0}, which this program cannot read")]
    Foreign(String),
    /// More is known of its devices, or in doubt of its frames, than is looked at at once; of some of them alone it is not.
    #[error("more is known of these devices, or in doubt, than is looked at at once")]
    TooWide,
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The data are at fault: find the frame.
    Split,
    /// Somebody was in the way: try again at once.
    Again,
    /// The database is not there: later.
    Later,
}

/// By the class of an SQLSTATE. Class 54 is the database's own limits (a full queue of notices): no frame is at fault. A
/// session that was ended because it sat idle in its transaction had too much to do for what it was given.
fn of_class(code: &str) -> Remedy {
    match code {
        code if code == "25P03" || code.starts_with("22") || code.starts_with("23") => Remedy::Split,
        _ => Remedy::Later,
    }
}

impl Error {
    /// What to do about it when trying again did not help: a time that still has no partition is the frame's fault.
    pub fn last_remedy(&self) -> Remedy {
        match self {
            Self::Database(error) if error.code().is_some_and(|code| code.code() == "23514") => Remedy::Split,
            _ => self.remedy(),
        }
    }

    /// Whether a statement took longer than it may. It would again.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Database(error) if error.code().is_some_and(|code| code.code() == "57014"))
    }

    /// Whether less of the same can be looked up: no frame is at fault.
    pub(crate) fn is_too_wide(&self) -> bool {
        matches!(self, Self::TooWide)
    }

    /// Whether the halves of so much are tried next; `left`: how often that may still be done to find what is at fault. What was
    /// too wide is halved until it is not: one frame never is.
    pub(crate) fn is_worth_halving(&self, len: usize, left: &mut u32) -> bool {
        if self.last_remedy() != Remedy::Split || len < 2 || (*left == 0 && !self.is_too_wide()) {
            return false;
        }
        *left -= u32::from(!self.is_too_wide());
        true
    }

    /// What to do about it.
    pub fn remedy(&self) -> Remedy {
        if self.is_too_wide() {
            return Remedy::Split;
        }
        let Self::Database(error) = self else { return Remedy::Later };
        let Some(code) = error.code() else { return Remedy::Later };
        match code.code() {
            // Deadlock, serialisation failure, lock or statement timeout; a partition that retention dropped meanwhile.
            "40P01" | "40001" | "55P03" | "57014" | "23514" => Remedy::Again,
            _ => of_class(code.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_idleness_are_a_batchs_own_fault_and_the_databases_limits_are_not() {
        for code in ["22P05", "22008", "23502", "25P03"] {
            assert_eq!(of_class(code), Remedy::Split, "{code}");
        }
        for code in ["54000", "57P01", "53300", "08006"] {
            assert_eq!(of_class(code), Remedy::Later, "{code}");
        }
    }
}
