//! What was measured, as JSON, as a Markdown table and as a picture.
//! Filled by `main`. Never rounds before the end.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use serde_json::{Value, json};

use super::products::Product;
use super::works::{Measure, Work};

/// One run of one product.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) product: Product,
    pub(crate) round: usize,
    pub(crate) requests: u64,
    pub(crate) lines: u64,
    pub(crate) per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) cpu_per_request: f64,
    /// What the work is compared by.
    pub(crate) value: f64,
    pub(crate) peak_kib: u64,
}

/// A work with all its runs.
pub(crate) struct Result {
    pub(crate) work: Work,
    pub(crate) runs: Vec<Run>,
}

/// The middle one; of an even number the mean of both.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

impl Result {
    fn of(&self, product: Product) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.product == product)
    }

    fn middle(&self, product: Product, what: impl Fn(&Run) -> f64) -> Option<f64> {
        median(self.of(product).map(what))
    }

    /// Ours to the peer's in each round, and of these the median.
    pub(crate) fn ratio(&self, peer: Product) -> Option<f64> {
        let pairs = self.of(Product::Proxy).filter_map(|ours| {
            let theirs = self.of(peer).find(|run| run.round == ours.round)?;
            Some(ours.value / theirs.value)
        });
        median(pairs)
    }

    /// Whether every target is met; the better peer is the one the ratio to is higher.
    pub(crate) fn is_met(&self) -> bool {
        let (haproxy, nginx) = (self.ratio(Product::Haproxy), self.ratio(Product::Nginx));
        let within = |ratio: Option<f64>, target: Option<f64>| match (ratio, target) {
            (Some(ratio), Some(target)) => ratio <= target,
            (None, Some(_)) => false,
            (_, None) => true,
        };
        let higher = nginx.map_or(haproxy, |nginx| haproxy.map(|haproxy| haproxy.max(nginx)));
        within(higher, self.work.target) && within(haproxy, self.work.target_haproxy)
    }

    fn json(&self) -> Value {
        let runs = self.runs.iter().map(|run| {
            json!({
                "product": run.product.name(), "round": run.round, "requests": run.requests, "lines": run.lines,
                "requests_per_second": run.per_second, "p50_us": run.p50, "p99_us": run.p99,
                "cpu_us_per_request": run.cpu_per_request, "value": run.value, "peak_rss_kib": run.peak_kib,
            })
        });
        let runs: Vec<_> = runs.collect();
        json!({
            "work": self.work.key, "title": self.work.title, "unit": self.work.measure.unit(),
            "ratio_haproxy": self.ratio(Product::Haproxy), "ratio_nginx": self.ratio(Product::Nginx),
            "met": self.is_met(), "runs": runs,
        })
    }

    fn row(&self) -> String {
        let number = |value: Option<f64>| match value {
            None => "–".to_owned(),
            Some(value) if value < 100.0 => format!("{value:.1}"),
            Some(value) => format!("{value:.0}"),
        };
        let ratio = |peer| self.ratio(peer).map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let three =
            |what: &dyn Fn(&Run) -> f64| Product::ALL.map(|product| number(self.middle(product, what))).join(" / ");
        let (work, idle) = (&self.work, self.work.measure == Measure::Memory);
        let all = work.target.map(|target| format!("{target:.2}"));
        let haproxy = work.target_haproxy.map(|target| format!("{target:.2} of HAProxy"));
        let target = [all, haproxy].into_iter().flatten().collect::<Vec<_>>().join(", ");
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} {} |",
            work.title,
            work.measure.unit(),
            three(&|run| run.value),
            ratio(Product::Haproxy),
            ratio(Product::Nginx),
            if idle { "–".to_owned() } else { three(&|run| run.per_second) },
            if idle { "–".to_owned() } else { three(&|run| run.p99) },
            three(&|run| run.peak_kib as f64 / 1024.0),
            target,
            if self.is_met() { "✓" } else { "✗" },
        )
    }
}

/// The table as the README has it.
pub(crate) fn table(results: &[Result]) -> String {
    let head = "| work | unit | proxy / HAProxy / nginx | to HAProxy | to nginx | requests/s | p99 µs | peak MiB | target |\n\
                |---|---|--:|--:|--:|--:|--:|--:|--:|\n";
    results.iter().fold(head.to_owned(), |all, result| all + &result.row() + "\n")
}

/// Everything, for machines.
pub(crate) fn write_json(results: &[Result], about: &Value, path: &Path) -> std::io::Result<()> {
    let works: Vec<_> = results.iter().map(Result::json).collect();
    let text = serde_json::to_string_pretty(&json!({ "about": about, "works": works }))?;
    std::fs::write(path, text + "\n")
}

/// Ratios as bars: below 1 we are cheaper.
pub(crate) fn plot(results: &[Result], path: &Path) -> std::result::Result<(), Box<dyn Error>> {
    const ROW: i32 = 34;
    const LEFT: i32 = 330;
    const UNIT: f64 = 380.0;
    let rows = i32::try_from(results.len())?;
    let (height, width) = (ROW * rows + 70, LEFT + 560);
    let area = SVGBackend::new(path, (u32::try_from(width)?, u32::try_from(height)?)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = ("sans-serif", 14).into_font();
    let colours = [(Product::Haproxy, RGBColor(38, 84, 124)), (Product::Nginx, RGBColor(6, 140, 90))];
    area.draw(&Text::new("cost of proxy as a share of the other's: less is better", (10, 10), text.clone()))?;
    for (place, (peer, colour)) in (0..).zip(colours) {
        let x = LEFT + 200 + place * 110;
        area.draw(&Rectangle::new([(x, 12), (x + 12, 24)], colour.filled()))?;
        area.draw(&Text::new(format!("to {}", peer.name()), (x + 18, 10), text.clone()))?;
    }
    for (place, result) in (0..).zip(results) {
        let y = 44 + place * ROW;
        area.draw(&Text::new(result.work.title, (10, y + 6), text.clone()))?;
        for (line, (peer, colour)) in (0..).zip(colours) {
            let Some(ratio) = result.ratio(peer) else { continue };
            let (top, end) = (y + line * 13, LEFT + (ratio.min(1.3) * UNIT) as i32);
            area.draw(&Rectangle::new([(LEFT, top), (end, top + 11)], colour.filled()))?;
            let label = ("sans-serif", 11).into_font();
            area.draw(&Text::new(format!("{ratio:.2}"), (end + 4, top), label))?;
        }
    }
    let one = LEFT + UNIT as i32;
    area.draw(&PathElement::new([(one, 36), (one, height - 16)], BLACK.stroke_width(1)))?;
    area.present()?;
    Ok(())
}
