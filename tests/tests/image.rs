//! The generated image that large measurements stand on is adopted, and reads as what was generated.

use anyhow::{Result, ensure};
use tests::image::{Image, Shape};
use tests::router::{Config, Router};
use tests::tools::scratch;

#[test]
fn a_generated_image_is_adopted_and_reads_as_what_was_generated() -> Result<()> {
    let folder = scratch("image")?;
    let store = folder.path().join("pool");
    let image = Image::generate(&store, "v", Shape { size: 1 << 30, tlogs: 10, entries: 4096 })?;
    let router = Router::start(Config::new(&folder.path().join("data"))?)?;
    let path = store.display().to_string();
    router.cli(&["vpool", "create", "p", "--backend", "directory", "--path", &path, "--adopt"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = tests::nbd::Client::connect(&router.endpoint(), "p/v").await?;
        ensure!(client.size() == 1 << 30);
        let mut mapped = 0;
        for i in (0..image.mappings() + 4096).step_by(7) {
            let (addr, content) = image.expected(i);
            mapped += u64::from(content.is_some());
            let read = client.read(addr * 4096, 4096).await?;
            let should = content.unwrap_or_else(|| vec![0; 4096].into());
            ensure!(read == should, "mapping {i} at cluster {addr} reads as something else");
        }
        ensure!(mapped > 5000, "{mapped} mappings only were read");
        Ok(())
    })
}
