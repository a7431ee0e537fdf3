//! Owns the case of clients that do nothing: what memory each costs the proxy.

use std::error::Error;

use super::generator::Generator;
use super::samples::Samples;
use super::stage::Stage;
use crate::resident_memory;

/// Resident memory per client, which has asked one query. The kernel's socket buffers are not among it.
pub(super) async fn measure(
    stage: &Stage,
    samples: &mut Samples,
    tls: bool,
) -> Result<(), Box<dyn Error>> {
    let (case, counts) = if tls {
        ("idle, TLS", &[1_000_u32][..])
    } else {
        ("idle", &[1_000, 10_000][..])
    };
    for way in stage.ways.iter().filter(|way| way.crowds) {
        let pid = way.pid.ok_or("not a proxy")?;
        let generator = Generator::new(stage, way, tls)?;
        // What the first clients cost is not that of the others.
        let mut clients = generator.crowd(40).await?;
        let (before, first) = (resident_memory(pid)?, clients.len());
        for &count in counts {
            let more = (count as usize + first).saturating_sub(clients.len());
            clients.extend(generator.crowd(more).await?);
            let grown = resident_memory(pid)?.saturating_sub(before);
            let bytes = f64::from(u32::try_from(grown)?) / f64::from(count);
            samples.add(
                case,
                &format!("{count} clients"),
                "RSS bytes per client",
                way.name,
                bytes,
            )?;
        }
    }
    Ok(())
}
