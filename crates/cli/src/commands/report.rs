//! `saferl report`: a run's page.

use crate::arguments::Report;
use crate::error::Result;
use crate::output::print_line;

/// Writes `report.html` in the run's folder and prints its path.
pub(crate) fn run(arguments: &Report) -> Result<()> {
    let path = train::report::write(&arguments.run)?;
    print_line(&path.display().to_string())
}
