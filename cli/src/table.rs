//! Aligned tables for people.

use std::io::{self, Write};

use anstyle::Style;
use comfy_table::presets::NOTHING;

use crate::terminal::escape_for_terminal;

/// The spaces between two columns.
const COLUMN_GAP: u16 = 2;

/// Rows under headers. A table without rows prints nothing.
pub struct Table<const COLUMNS: usize> {
    cells: comfy_table::Table,
    /// The length of the first cell of each row, and its style.
    first_cells: Vec<(usize, Style)>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub fn new(headers: [&str; COLUMNS]) -> Self {
        let mut cells = comfy_table::Table::new();
        cells.load_style(NOTHING).set_header(headers);
        for column in cells.column_iter_mut() {
            column.set_padding((0, COLUMN_GAP));
        }
        Self {
            cells,
            first_cells: Vec::new(),
        }
    }

    /// Adds a row without colors.
    pub fn add_row(&mut self, row: [String; COLUMNS]) {
        self.add_styled_row(Style::new(), row);
    }

    /// Adds a row whose first cell has a style. Cells may have text from others.
    pub fn add_styled_row(&mut self, style: Style, row: [String; COLUMNS]) {
        let row = row.map(|cell| escape_for_terminal(&cell));
        let first_length = row.first().map_or(0, String::len);
        self.first_cells.push((first_length, style));
        self.cells.add_row(row);
    }

    /// Prints the table on stdout, without colors unless stdout is a terminal that takes them.
    pub fn print(&self) -> io::Result<()> {
        anstream::stdout().write_all(self.format().as_bytes())
    }

    fn format(&self) -> String {
        if self.first_cells.is_empty() {
            return String::new();
        }
        let bold = Style::new().bold();
        let mut lines = self.cells.lines();
        let header = lines.next().unwrap_or_default();
        let mut styled = vec![format!("{bold}{}{bold:#}\n", header.trim_end())];
        for (line, (first_length, style)) in lines.zip(&self.first_cells) {
            let (first, rest) = line.split_at(*first_length);
            styled.push(format!("{style}{first}{style:#}{}\n", rest.trim_end()));
        }
        styled.concat()
    }
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    #[test]
    fn columns_are_aligned_and_first_cell_is_styled() {
        let mut table = Table::new(["STATUS", "JOB", "ATTEMPTS"]);
        assert_eq!(table.format(), "");
        let red = AnsiColor::Red.on_default();
        table.add_styled_row(red, ["failed", "動画", "10"].map(str::to_owned));
        table.add_row(["delivered", "task\u{1b}[2J", ""].map(str::to_owned));
        assert_eq!(
            table.format(),
            "\u{1b}[1mSTATUS     JOB            ATTEMPTS\u{1b}[0m\n\
             \u{1b}[31mfailed\u{1b}[0m     動画           10\n\
             delivered  task\\u{1b}[2J\n"
        );
    }
}
