//! Aligned columns, cut to the terminal's width where there is one.
//!
//! A table may come in batches (a page of a list, one signal of a watch): the header is written once, and columns
//! only ever grow.

use std::io::{self, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::{
    escape,
    output::{Screen, Tone},
};

const GAP: usize = 2;
/// No column is made narrower than this to fit the terminal.
const NARROWEST: usize = 8;

/// One cell. It can't be made without escaping what is in it.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Any text; empty means unknown and shows as `-`.
    pub fn text(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let text = if text.is_empty() { "-".to_owned() } else { escape::text(text) };
        Self { text, tone: Tone::Plain }
    }

    /// A command line, quoted as for a shell.
    pub fn command<S: AsRef<str>>(argv: impl IntoIterator<Item = S>, truncated: bool) -> Self {
        let mut text = escape::shell_command(argv);
        if truncated {
            text.push_str(" …");
        }
        Self { text, tone: Tone::Plain }
    }

    /// The same with a tone.
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    title: &'static str,
    may_be_cut: bool,
}

/// A column that is of no use when it is cut: an id, a time, one of few words.
pub const fn whole(title: &'static str) -> Column {
    Column { title, may_be_cut: false }
}

/// A column of names, paths or sentences.
pub const fn text(title: &'static str) -> Column {
    Column { title, may_be_cut: true }
}

/// A table under way.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    widths: Vec<usize>,
    screen: Screen,
    started: bool,
}

impl Table {
    /// A table with these columns; nothing is written yet.
    pub fn new(columns: Vec<Column>, screen: Screen) -> Self {
        let widths = columns.iter().map(|column| column.title.width()).collect();
        Self { columns, widths, screen, started: false }
    }

    /// Writes these rows, after the header if it is the first time.
    pub fn write(&mut self, out: &mut impl Write, rows: &[Vec<Cell>]) -> io::Result<()> {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        let widths = self.fitted();
        if !self.started {
            self.started = true;
            let header: Vec<_> = self.columns.iter().map(|column| Cell::text(column.title).tone(Tone::Title)).collect();
            self.line(out, &header, &widths)?;
        }
        rows.iter().try_for_each(|row| self.line(out, row, &widths))
    }

    /// The widths, less what the terminal does not have: the widest column that may be cut gives first.
    fn fitted(&self) -> Vec<usize> {
        let mut widths = self.widths.clone();
        let Some(limit) = self.screen.width else { return widths };
        let mut total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        while total > limit {
            let cuttable = widths.iter_mut().zip(&self.columns).filter(|(_, column)| column.may_be_cut);
            match cuttable.map(|(width, _)| width).max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => break,
            }
            total -= 1;
        }
        widths
    }

    fn line(&self, out: &mut impl Write, cells: &[Cell], widths: &[usize]) -> io::Result<()> {
        let mut owed = 0;
        for (cell, &width) in cells.iter().zip(widths) {
            let text = cut(&cell.text, width);
            write!(out, "{:owed$}{}", "", self.screen.paint(cell.tone, &text))?;
            // Padding is written only when something follows: no line ends in spaces.
            owed = width.saturating_sub(text.width()) + GAP;
        }
        writeln!(out)
    }
}

/// The text, or its beginning and `…`, in at most `width` columns.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 1; // the ellipsis
    let mut out: String = text
        .chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .collect();
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(width: Option<usize>, color: bool, batches: &[Vec<Vec<Cell>>]) -> String {
        let mut table = Table::new(vec![whole("ID"), text("COMMAND"), text("IMAGE")], Screen { width, color });
        let mut out = Vec::new();
        for rows in batches {
            table.write(&mut out, rows).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    fn row(id: &str, command: &str, image: &str) -> Vec<Cell> {
        vec![Cell::text(id), Cell::text(command), Cell::text(image)]
    }

    #[test]
    fn aligns_by_display_width_and_leaves_no_trailing_space() {
        let out = render(None, false, &[vec![row("1", "日本", "x"), row("22", "nc", "")]]);
        assert_eq!(out, "ID  COMMAND  IMAGE\n1   日本     x\n22  nc       -\n");
    }

    #[test]
    fn header_once_and_columns_only_grow() {
        let out = render(None, false, &[vec![row("1", "a-long-command", "x")], vec![row("2", "b", "y")]]);
        assert_eq!(out, "ID  COMMAND         IMAGE\n1   a-long-command  x\n2   b               y\n");
    }

    #[test]
    fn cuts_to_the_terminal_only() {
        let long = "x".repeat(60);
        let out = render(Some(40), false, &[vec![row("a-whole-id", &long, &long)]]);
        for line in out.lines() {
            assert!(line.width() <= 40, "{line}");
        }
        assert!(out.contains("\na-whole-id  x"), "{out}");
        assert!(out.contains("x…"), "{out}");
        assert!(!render(None, false, &[vec![row("1", &long, &long)]]).contains('…'));
    }

    #[test]
    fn hostile_cells_stay_on_their_line() {
        let out = render(None, false, &[vec![row("1", "a\n\x1b[2J\u{202e}b\r", "x")]]);
        assert_eq!(out.lines().count(), 2);
        assert!(!out.chars().any(|c| c != '\n' && escape::is_deceptive(c)), "{out:?}");
    }

    #[test]
    fn colour_does_not_move_columns() {
        let cells = vec![Cell::text("1"), Cell::text("nc").tone(Tone::Bad), Cell::text("x")];
        let plain = render(None, false, &[vec![cells.clone()]]);
        let coloured = render(None, true, &[vec![cells]]);
        assert!(coloured.contains("\x1b["));
        let mut stripped = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            stripped.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        stripped.push_str(rest);
        assert_eq!(stripped, plain);
    }
}
