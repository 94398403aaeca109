//! Plots as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    chart::{ChartBuilder, ChartContext, SeriesLabelPosition},
    coord::{
        Shift,
        ranged1d::{Ranged, ValueFormatter},
    },
    prelude::*,
};

use crate::figure::Plot;

const SIZE: (u32, u32) = (800, 480);
const FONT: &str = "sans-serif";

type Backend<'a> = SVGBackend<'a>;

/// The values that are drawn, with some room around them.
fn range(values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let most = values.fold(f64::NEG_INFINITY, f64::max);
    let room = (most - least).max(most.abs() * 0.02).max(1e-9) * 0.05;
    least - room..most + room
}

pub fn draw(plot: &Plot, file: &Path) -> Result<()> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    let drawn = area
        .fill(&WHITE)
        .map_err(|error| anyhow!("{error}"))
        .and_then(|()| if plot.bars.is_empty() { lines(plot, &area) } else { bars(plot, &area) });
    drawn.and_then(|()| area.present().map_err(|error| anyhow!("{error}")))
}

fn builder<'a, 'b>(plot: &Plot, area: &'a DrawingArea<Backend<'b>, Shift>) -> ChartBuilder<'a, 'b, Backend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.caption(&plot.title, (FONT, 18)).margin(12).x_label_area_size(44).y_label_area_size(64);
    builder
}

fn lines(plot: &Plot, area: &DrawingArea<Backend<'_>, Shift>) -> Result<()> {
    let points = || plot.lines.values().flatten().copied();
    let y = range(points().map(|(_, y)| y));
    let x = range(points().map(|(x, _)| x));
    if plot.logarithmic {
        let most = points().fold(1.0_f64, |most, (x, _)| most.max(x));
        let mut chart = failing(builder(plot, area).build_cartesian_2d((0.9..most * 1.1).log_scale(), y))?;
        series(plot, &mut chart)
    } else {
        let mut chart = failing(builder(plot, area).build_cartesian_2d(x, y))?;
        series(plot, &mut chart)
    }
}

fn series<'a, X, Y>(plot: &Plot, chart: &mut ChartContext<'a, Backend<'a>, Cartesian2d<X, Y>>) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    failing(chart.configure_mesh().x_desc(&plot.x).y_desc(&plot.y).label_style((FONT, 13)).draw())?;
    for (place, (name, points)) in plot.lines.iter().enumerate() {
        let color = Palette99::pick(place).to_rgba();
        let line = failing(chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2))))?;
        line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    let labels =
        labels.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8)).label_font((FONT, 13));
    failing(labels.draw())
}

/// One below the other, each beside its name.
fn bars(plot: &Plot, area: &DrawingArea<Backend<'_>, Shift>) -> Result<()> {
    let end = plot.bars.iter().fold(0.0_f64, |most, (_, _, end)| most.max(*end));
    let count = i32::try_from(plot.bars.len())?;
    // A third of it is for the last bars' names.
    let mut chart = failing(builder(plot, area).build_cartesian_2d(0.0..end * 1.4, count..0))?;
    failing(chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc(&plot.x).label_style((FONT, 13)).draw())?;
    for (place, (name, begin, end)) in (0..).zip(&plot.bars) {
        let color = Palette99::pick(usize::try_from(place)?).to_rgba();
        let bar = Rectangle::new([(*begin, place), (*end, place + 1)], color.filled());
        failing(chart.draw_series([bar]))?;
        let text = Text::new(format!(" {name}"), (*end, place), (FONT, 13));
        failing(chart.draw_series([text]))?;
    }
    Ok(())
}

/// The library's errors borrow from the plot.
fn failing<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T> {
    result.map_err(|error| anyhow!("{error}"))
}
