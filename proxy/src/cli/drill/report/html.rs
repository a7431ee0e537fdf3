//! Owns the report as one HTML page that needs nothing else: the text, and the timeline as a drawing. No script.

use std::fmt::Write as _;

use super::{Report, text};
use crate::cli::drill::timeline::Step;

/// The size of one chart, and what is around it.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 120.0;
const LEFT: f64 = 60.0;
const GAP: f64 = 40.0;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c2330; --paper: #ffffff; --faint: #d5dae3; --bad: #c62828; --well: #2e7d5b; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ee; --paper: #14181f; --faint: #39414f; --bad: #ff6b63; --well: #57c39a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2em auto; max-width: 62em; padding: 0 1em; }
pre { font: 12.5px/1.35 ui-monospace, monospace; overflow-x: auto; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.passed { color: var(--well); } .failed { color: var(--bad); }
.frame { fill: none; stroke: var(--faint); } .away { fill: var(--bad); opacity: 0.12; }
.bad { fill: var(--bad); } .line { fill: none; stroke-width: 1.5; }";

/// One for each node; they come again from the ninth on.
const COLOURS: [&str; 8] = [
    "#3b7dd8", "#d98a1f", "#2f9e6e", "#9257c9", "#c2486f", "#3aa0a8", "#8a7a3a", "#6b7688",
];

/// The page.
pub(in crate::cli::drill) fn html(report: &Report) -> String {
    let title = format!("Drill: {} of {}", report.scenario.word(), report.node);
    let title = escaped(&title);
    let (class, verdict) = match report.passed {
        true => ("passed", "passed"),
        false => ("failed", "failed"),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}\n</style></head>\n<body>\n<h1>{title}: <span class=\"{class}\">{verdict}</span></h1>\n{}\n\
         <pre>{}</pre>\n</body></html>\n",
        drawing(report),
        escaped(&text(report))
    )
}

/// Text between tags or in an attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A chart over the whole time.
struct Chart<'a> {
    report: &'a Report,
    top: f64,
    most: f64,
    svg: String,
}

impl<'a> Chart<'a> {
    fn new(report: &'a Report, place: u32, title: &str, most: f64, unit: &str) -> Self {
        let top = GAP + f64::from(place) * (HEIGHT + GAP);
        let mut chart = Self {
            report,
            top,
            most: most.max(1.0),
            svg: String::new(),
        };
        let most = chart.most;
        // Writing to a String cannot fail.
        let _ = write!(
            chart.svg,
            "<text x=\"{LEFT}\" y=\"{:.1}\">{}</text>\n<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{most:.0}{unit}</text>\n",
            top - 8.0,
            escaped(title),
            LEFT - 6.0,
            top + 10.0,
        );
        chart.away();
        let _ = writeln!(
            chart.svg,
            "<rect class=\"frame\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>"
        );
        chart
    }

    fn x(&self, ms: u64) -> f64 {
        let length = (self.report.timeline.len() as u64).max(1) * 100;
        LEFT + WIDTH * number(ms.min(length)) / number(length)
    }

    fn height(&self, value: f64) -> f64 {
        HEIGHT * (value / self.most).min(1.0)
    }

    /// Shades the time from each blow to its mending.
    fn away(&mut self) {
        let mut struck = None;
        for moment in &self.report.moments {
            match (struck, moment.what.as_str()) {
                (Some(from), "mended") => {
                    let (from, to) = (self.x(from), self.x(moment.ms));
                    let _ = writeln!(
                        self.svg,
                        "<rect class=\"away\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\"/>",
                        self.top,
                        to - from
                    );
                    struck = None;
                }
                (None, what) if what != "mended" => struck = Some(moment.ms),
                _ => {}
            }
        }
    }

    /// Bars on top of each other, each with its look.
    fn bars(&mut self, parts: &dyn Fn(&Step) -> Vec<(u64, String)>) {
        let width = (self.x(100) - self.x(0) - 0.3).max(0.3);
        for step in &self.report.timeline {
            let mut bottom = self.top + HEIGHT;
            for (value, look) in parts(step).into_iter().filter(|(value, _)| *value > 0) {
                let height = self.height(number(value));
                bottom -= height;
                let _ = writeln!(
                    self.svg,
                    "<rect {look} x=\"{:.1}\" y=\"{bottom:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>",
                    self.x(step.ms)
                );
            }
        }
    }

    /// A line with holes where nothing was measured.
    fn line(&mut self, colour: &str, value: &dyn Fn(&Step) -> Option<f64>) {
        let mut path = String::new();
        let mut pen = 'M';
        for step in &self.report.timeline {
            let Some(value) = value(step) else {
                pen = 'M';
                continue;
            };
            let y = self.top + HEIGHT - self.height(value);
            let _ = write!(path, "{pen}{:.1} {y:.1}", self.x(step.ms + 50));
            pen = 'L';
        }
        if !path.is_empty() {
            let _ = writeln!(
                self.svg,
                "<path class=\"line\" stroke=\"{colour}\" d=\"{path}\"/>"
            );
        }
    }
}

/// Counts and times of one drill, far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

fn colour(place: usize) -> &'static str {
    COLOURS
        .get(place % COLOURS.len())
        .copied()
        .unwrap_or("currentColor")
}

fn drawing(report: &Report) -> String {
    let most =
        |of: &dyn Fn(&Step) -> u64| number(report.timeline.iter().map(of).max().unwrap_or(0));
    let fill = |colour: &str| format!("fill=\"{colour}\"");
    let troubles = |step: &Step| step.failed + step.refused + step.unknown;

    let title = "transactions of pgbench in 100 ms; red: failed, and the ledger's refused and unknown writes";
    let height = most(&|step| step.transactions + troubles(step));
    let mut throughput = Chart::new(report, 0, title, height, "");
    throughput.bars(&|step| {
        vec![
            (troubles(step), "class=\"bad\"".to_owned()),
            (step.transactions, fill(colour(0))),
        ]
    });

    let slowest = report.timeline.iter().filter_map(|step| step.p99_ms);
    let slowest = slowest.fold(0.0, f64::max);
    let mut latency = Chart::new(report, 1, "latency: p50 and p99", slowest, " ms");
    latency.line(colour(2), &|step| step.p50_ms);
    latency.line(colour(1), &|step| step.p99_ms);

    let height = most(&|step| step.written.iter().sum());
    let mut nodes = Chart::new(report, 2, "writes of the ledger by node", height, "");
    nodes.bars(&|step| {
        let written = step.written.iter().enumerate();
        written
            .map(|(place, count)| (*count, fill(colour(place))))
            .collect()
    });
    let bottom = nodes.top + HEIGHT + 20.0;
    let mut legend = String::new();
    let mut x = LEFT;
    for (place, node) in report.nodes.iter().enumerate() {
        let _ = writeln!(
            legend,
            "<rect fill=\"{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\"/><text x=\"{:.1}\" y=\"{bottom:.1}\">{}</text>",
            colour(place),
            bottom - 9.0,
            x + 14.0,
            escaped(node)
        );
        x += 40.0 + 7.0 * number(node.chars().count() as u64);
    }
    let seconds = report.timeline.len() as u64 / 10;
    let _ = writeln!(
        legend,
        "<text x=\"{:.1}\" y=\"{bottom:.1}\" text-anchor=\"end\">{seconds} s</text>",
        LEFT + WIDTH
    );
    format!(
        "<svg viewBox=\"0 0 {:.0} {:.0}\" role=\"img\" aria-label=\"timeline\">\n{}{}{}{legend}</svg>",
        LEFT + WIDTH + 10.0,
        bottom + 12.0,
        throughput.svg,
        latency.svg,
        nodes.svg
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drill::report::tests::report;

    #[test]
    fn the_page_needs_nothing_else_and_names_do_not_become_tags() {
        let page = html(&report());
        for foreign in ["<script", "http://", "https://", "src=", "<link", "<delhi>"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("&lt;delhi&gt;") && page.contains("aborted &amp; gone"));
        assert!(page.contains("<span class=\"failed\">failed</span>"));
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn tags_are_closed_and_what_failed_and_when_the_node_was_away_is_drawn() {
        let report = report();
        let page = html(&report);
        for tag in [
            "html", "head", "style", "body", "svg", "pre", "h1", "span", "title",
        ] {
            let (opened, closed) = (format!("<{tag}"), format!("</{tag}>"));
            let opened = page
                .match_indices(&opened)
                .filter(|(place, _)| {
                    let next = page.as_bytes()[place + opened.len()];
                    !next.is_ascii_alphanumeric()
                })
                .count();
            assert_eq!(opened, page.matches(&closed).count(), "{tag}");
        }
        // Away from 100 to 300 ms of 500: two fifths of the width, in each of the three charts.
        assert_eq!(
            page.matches("class=\"away\" x=\"240.0\"").count(),
            3,
            "{page}"
        );
        assert_eq!(page.matches("width=\"360.0\"").count(), 3, "{page}");
        assert_eq!(page.matches("<rect class=\"bad\"").count(), 1);
        assert_eq!(page.matches("<path class=\"line\"").count(), 2);
        for bad in ["NaN", "inf"] {
            assert!(!page.contains(bad), "{bad}");
        }
    }

    #[test]
    fn an_empty_timeline_is_drawn_too() {
        let mut report = report();
        report.timeline.clear();
        let page = html(&report);
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
